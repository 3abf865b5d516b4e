"""A fake of W&B's server, on loopback: what wandb 0.31's client asks in these tests, answered from memory.

It checks our use of the client, not W&B's service. An operation or path that it does not know fails the test: it is
answered with an error and listed in ``problems``, which the fixture asserts to be empty.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "tester"


@dataclass
class FakeRun:
    """A bucket, as the server calls a run."""

    id: str
    number: int
    project: str
    fields: dict[str, Any] = field(default_factory=dict)
    summary: str = "{}"
    history: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history if line]

    def node(self) -> dict[str, Any]:
        f, last = self.fields, len(self.rows)
        return {
            "id": f"bucket-{self.number}", "name": self.id, "displayName": f.get("displayName"), "state": self.state,
            "tags": f.get("tags") or [], "sweepName": None, "config": f.get("config") or "{}",
            "group": f.get("groupName"), "jobType": f.get("jobType"), "commit": None, "readOnly": False,
            "createdAt": f"2026-11-21T00:00:{self.number:02d}Z", "heartbeatAt": "2026-11-21T00:01:00Z",
            "description": None, "notes": None, "systemMetrics": "{}", "summaryMetrics": self.summary,
            "historyLineCount": last, "user": {"name": ENTITY, "username": ENTITY}, "projectId": "1",
            "historyKeys": {"lastStep": max((r["_step"] for r in self.rows), default=-1), "sets": [], "keys": {}},
        }  # fmt: skip


class FakeWandb(ThreadingHTTPServer):
    """Serves one test; ``runs`` is what was synced, ``operations`` what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, FakeRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.problems: list[str] = []
        self.refuse: dict[str, int] = {}  # operation → how many more requests are answered with 429
        self.refused = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gave up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(parts)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        return data

    def _answer(self, content: Any, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
        self.end_headers()
        self.wfile.write(data)

    def _problem(self, text: str) -> None:
        self.server.problems.append(text)
        self._answer({"errors": [{"message": f"the fake does not know {text}"}]}, 400)

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if found := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path):
            return self._stream(unquote(found[2]), json.loads(body))
        self._problem(f"POST {path}")

    def do_PUT(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/storage/([^/]+)/(.+)", path):
            self.server.runs[found[1]].files[found[2]] = body
            return self._answer({})
        self._problem(f"PUT {path}")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/storage/([^/]+)/(.+)", path)
        if found and found[2] in self.server.runs[found[1]].files:
            return self._answer(self.server.runs[found[1]].files[found[2]])
        self._problem(f"GET {path}")

    def _stream(self, id: str, content: dict[str, Any]) -> None:
        with self.server.lock:
            run = self.server.runs[id]
            files = content.get("files") or {}
            if "wandb-history.jsonl" in files:
                chunk = files["wandb-history.jsonl"]
                need = chunk["offset"] + len(chunk["content"])
                run.history += [""] * (need - len(run.history))
                run.history[chunk["offset"] : need] = chunk["content"]
            if "wandb-summary.json" in files:
                run.summary = files["wandb-summary.json"]["content"][-1]
            if content.get("complete"):
                run.state = "finished" if content.get("exitcode") == 0 else "failed"
        self._answer({"limits": {}})

    def _graphql(self, asked: dict[str, Any]) -> None:
        query, variables = asked["query"], asked.get("variables") or {}
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else query[:80]
        with self.server.lock:
            self.server.operations.append(name)
            if self.server.refuse.get(name, 0) > 0:
                self.server.refuse[name] -= 1
                self.server.refused += 1
                return self._answer({"errors": [{"message": "rate limit exceeded"}]}, 429)
            act = getattr(self, f"_op_{name}", None)
            if act is None:
                return self._problem(f"operation {name}: {query} {json.dumps(variables)[:300]}")
            content = act(variables)
        self._answer({"data": content})

    # What the client asks; one method per operation.

    def _op_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _op_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": None, "admin": False}
        teams = {"edges": [{"node": {"id": "1", "name": ENTITY}}]}
        return {"viewer": viewer | {"flags": "{}", "teams": teams, "deletedAt": None}}

    def _op_RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs.get(asked["name"])
        entity = {"id": "1", "name": ENTITY}
        bucket = None
        if run is not None:
            bucket = run.node() | {
                "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": None,
                "historyLineCount": len(run.history), "historyTail": json.dumps(run.history[-1:]),
            }  # fmt: skip
        return {"model": {"id": "1", "name": asked["project"], "entity": entity, "bucket": bucket}}

    def _op_UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        runs = self.server.runs
        id = asked.get("name") or next(r.id for r in runs.values() if r.node()["id"] == asked["id"])
        inserted = id not in runs
        run = runs.setdefault(id, FakeRun(id, len(runs), asked.get("project") or ""))
        run.fields |= {key: value for key, value in asked.items() if value is not None}
        if asked.get("summaryMetrics"):
            run.summary = asked["summaryMetrics"]
        run.state = "running"
        project = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
        return {"upsertBucket": {"bucket": run.node() | {"project": project}, "inserted": inserted}}

    def _op_CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        id, names = asked["run"], asked["files"]
        files = [{"name": name, "uploadUrl": f"{self.server.url}/storage/{id}/{name}"} for name in names]
        return {"createRunFiles": {"runID": id, "uploadHeaders": [], "files": files}}

    def _op_CreateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.artifacts.append(asked["input"])
        artifact = {"id": str(len(self.server.artifacts)), "state": "COMMITTED"}  # so that no file is asked for
        return {"createArtifact": {"artifact": artifact | {"artifactSequence": {"latestArtifact": None}}}}

    def _op_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def _op_Runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        chosen = [r for r in self.server.runs.values() if r.project == asked["project"] and self._chosen(r, asked)]
        first, most = int(asked.get("cursor") or 0), asked["perPage"]
        page = chosen[first : first + most]
        edges = [{"node": r.node(), "cursor": str(first + i + 1)} for i, r in enumerate(page)]
        info = {"endCursor": str(first + len(page)), "hasNextPage": first + len(page) < len(chosen)}
        runs = {"edges": edges, "pageInfo": info}
        return {"project": {"internalId": "1", "runCount": len(chosen), "readOnly": False, "runs": runs}}

    def _chosen(self, run: FakeRun, asked: dict[str, Any]) -> bool:
        """W&B's filters are MongoDB's; of these, only a list of values is known here."""
        node = run.node()
        for key, rule in json.loads(asked.get("filters") or "{}").items():
            if set(rule) != {"$in"} or key not in node:
                self.server.problems.append(f"filter {key}: {rule}")
            has = node[key] if isinstance(node[key], list) else [node[key]]
            if not set(has) & set(rule["$in"]):
                return False
        return True

    def _project(self, of_run: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "1", "internalId": "1", "run": of_run}}

    def _op_RunHistoryKeys(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._project({"historyKeys": self.server.runs[asked["name"]].node()["historyKeys"]})

    def _op_RunParquetHistory(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._project({"parquetHistory": {"liveData": [], "parquetUrls": []}})

    def _op_HistoryPage(self, asked: dict[str, Any]) -> dict[str, Any]:
        rows = self.server.runs[asked["run"]].rows
        kept = [r for r in rows if asked["minStep"] <= r["_step"] < asked["maxStep"]]
        return self._project({"history": [json.dumps(r) for r in kept]})

    def _op_RunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[asked["name"]]
        names = [n for n in run.files if not asked["fileNames"] or n in asked["fileNames"]]
        edges = [{"cursor": name, "node": {
            "id": name, "name": name, "url": f"{self.server.url}/storage/{run.id}/{name}", "directUrl": None,
            "sizeBytes": len(run.files[name]), "mimetype": "", "updatedAt": "2026-11-21T00:00:00Z", "md5": "",
        }} for name in names]  # fmt: skip
        info = {"endCursor": None, "hasNextPage": False}
        return self._project({"fileCount": len(run.files), "files": {"edges": edges, "pageInfo": info}})

    def _op_UpsertView2(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.views.append(asked)
        view = {"id": f"view-{len(self.server.views)}", "name": asked["name"]}
        return {"upsertView": {"view": view, "inserted": True}}
