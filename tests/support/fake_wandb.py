"""A fake of W&B's server, on loopback: what wandb 0.31's client asks in these tests, answered from memory.

It checks our use of the client, not W&B's service. An operation or path that it does not know fails the test: it is
answered with an error and listed in ``problems``, which the fixture asserts to be empty.
"""

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "tester"
OWNER = {"id": "1", "name": ENTITY}


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
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.history if line]

    def node(self) -> dict:
        f, last = self.fields, max((r["_step"] for r in self.rows), default=-1)
        return {
            "id": f"bucket-{self.number}", "name": self.id, "displayName": f.get("displayName"), "state": self.state,
            "tags": f.get("tags") or [], "sweepName": None, "config": f.get("config") or "{}",
            "group": f.get("groupName"), "jobType": f.get("jobType"), "commit": None, "readOnly": False,
            "createdAt": f"2026-11-21T00:00:{self.number:02d}Z", "heartbeatAt": "2026-11-21T00:01:00Z",
            "description": None, "notes": None, "systemMetrics": "{}", "summaryMetrics": self.summary,
            "historyLineCount": len(self.rows), "user": {"name": ENTITY, "username": ENTITY}, "projectId": "1",
            "historyKeys": {"lastStep": last, "sets": [], "keys": {}},
        }  # fmt: skip


class FakeWandb(ThreadingHTTPServer):
    """Serves one test; ``runs`` is what was synced, ``operations`` what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, FakeRun] = {}
        self.artifacts: list[dict] = []
        self.views: list[dict] = []
        self.operations: list[str] = []
        self.problems: list[str] = []
        self.refuse: dict[str, int] = {}  # operation → how many more requests are answered with 429
        self.refused = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gave up
            super().handle_error(request, client_address)

    # What the client asks; one method per operation.

    def ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def Viewer(self, _: dict) -> dict:
        viewer = OWNER | {"entity": ENTITY, "username": ENTITY, "email": None, "admin": False, "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": [{"node": OWNER}]}, "deletedAt": None}}

    def GetDefaultEntity(self, _: dict) -> dict:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def RunResumeStatus(self, asked: dict) -> dict:
        run, bucket = self.runs.get(asked["name"]), None
        if run is not None:
            bucket = run.node() | {
                "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": None,
                "historyLineCount": len(run.history), "historyTail": json.dumps(run.history[-1:]),
            }  # fmt: skip
        return {"model": {"id": "1", "name": asked["project"], "entity": OWNER, "bucket": bucket}}

    def UpsertBucket(self, asked: dict) -> dict:
        id = asked.get("name") or next(r.id for r in self.runs.values() if r.node()["id"] == asked["id"])
        inserted = id not in self.runs
        run = self.runs.setdefault(id, FakeRun(id, len(self.runs), asked.get("project") or ""))
        run.fields |= {key: value for key, value in asked.items() if value is not None}
        run.summary, run.state = asked.get("summaryMetrics") or run.summary, "running"
        project = {"id": "1", "name": run.project, "entity": OWNER}
        return {"upsertBucket": {"bucket": run.node() | {"project": project}, "inserted": inserted}}

    def CreateRunFiles(self, asked: dict) -> dict:
        id = asked["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{id}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": id, "uploadHeaders": [], "files": files}}

    def CreateArtifact(self, asked: dict) -> dict:
        self.artifacts.append(asked["input"])
        artifact = {"id": str(len(self.artifacts)), "state": "COMMITTED"}  # so that no file is asked for
        return {"createArtifact": {"artifact": artifact | {"artifactSequence": {"latestArtifact": None}}}}

    def Runs(self, asked: dict) -> dict:
        chosen = [r for r in self.runs.values() if r.project == asked["project"] and self._chosen(r, asked)]
        first = int(asked.get("cursor") or 0)
        page = chosen[first : first + asked["perPage"]]
        edges = [{"node": r.node(), "cursor": str(first + i + 1)} for i, r in enumerate(page)]
        info = {"endCursor": str(first + len(page)), "hasNextPage": first + len(page) < len(chosen)}
        runs = {"edges": edges, "pageInfo": info}
        return {"project": {"internalId": "1", "runCount": len(chosen), "readOnly": False, "runs": runs}}

    def _chosen(self, run: FakeRun, asked: dict) -> bool:
        """W&B's filters are MongoDB's; of these, only a list of values is known here."""
        node, rules = run.node(), json.loads(asked.get("filters") or "{}")
        self.problems += [f"filter {key}: {r}" for key, r in rules.items() if set(r) != {"$in"} or key not in node]
        values = {key: node[key] if isinstance(node[key], list) else [node[key]] for key in rules}
        return all(set(values[key]) & set(rule["$in"]) for key, rule in rules.items())

    def RunHistoryKeys(self, asked: dict) -> dict:
        return _project({"historyKeys": self.runs[asked["name"]].node()["historyKeys"]})

    def RunParquetHistory(self, _: dict) -> dict:
        return _project({"parquetHistory": {"liveData": [], "parquetUrls": []}})

    def HistoryPage(self, asked: dict) -> dict:
        kept = [r for r in self.runs[asked["run"]].rows if asked["minStep"] <= r["_step"] < asked["maxStep"]]
        return _project({"history": [json.dumps(r) for r in kept]})

    def RunFiles(self, asked: dict) -> dict:
        run = self.runs[asked["name"]]
        edges = [{"cursor": name, "node": {
            "id": name, "name": name, "url": f"{self.url}/storage/{run.id}/{name}", "directUrl": None,
            "sizeBytes": len(data), "mimetype": "", "updatedAt": "2026-11-21T00:00:00Z", "md5": "",
        }} for name, data in run.files.items() if not asked["fileNames"] or name in asked["fileNames"]]  # fmt: skip
        info = {"endCursor": None, "hasNextPage": False}
        return _project({"fileCount": len(run.files), "files": {"edges": edges, "pageInfo": info}})

    def UpsertView2(self, asked: dict) -> dict:
        self.views.append(asked)
        view = {"id": f"view-{len(self.views)}", "name": asked["name"]}
        return {"upsertView": {"view": view, "inserted": True}}


def _project(of_run: dict) -> dict:
    return {"project": {"id": "1", "internalId": "1", "run": of_run}}


class _Handler(BaseHTTPRequestHandler):
    server: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _answer(self, content: Any, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
        self.end_headers()
        self.wfile.write(data)

    def _any(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        files = re.fullmatch(r"/storage/([^/]+)/(.+)", path)
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        if self.command == "POST" and path == "/graphql":
            self._graphql(**json.loads(body))
        elif self.command == "POST" and stream:
            self._stream(self.server.runs[stream[1]], json.loads(body))
        elif self.command == "PUT" and files:
            self.server.runs[files[1]].files[files[2]] = body
            self._answer({})
        elif self.command == "GET" and files and files[2] in self.server.runs[files[1]].files:
            self._answer(self.server.runs[files[1]].files[files[2]])
        else:
            self._problem(f"{self.command} {path}")

    do_GET = do_POST = do_PUT = _any

    def _problem(self, text: str) -> None:
        self.server.problems.append(text)
        self._answer({"errors": [{"message": f"the fake does not know {text}"}]}, 400)

    def _stream(self, run: FakeRun, content: dict) -> None:
        with self.server.lock:
            files = content.get("files") or {}
            if chunk := files.get("wandb-history.jsonl"):
                need = chunk["offset"] + len(chunk["content"])
                run.history += [""] * (need - len(run.history))
                run.history[chunk["offset"] : need] = chunk["content"]
            if "wandb-summary.json" in files:
                run.summary = files["wandb-summary.json"]["content"][-1]
            if content.get("complete"):
                run.state = "finished" if content.get("exitcode") == 0 else "failed"
        self._answer({"limits": {}})

    def _graphql(self, query: str, variables: dict | None = None, **_: Any) -> None:
        found, server = re.search(r"\b(?:query|mutation)\s+([A-Z]\w+)", query), self.server
        name = found[1] if found else query[:80]
        with server.lock:
            server.operations.append(name)
            if server.refuse.get(name, 0) > 0:
                server.refuse[name] -= 1
                server.refused += 1
                return self._answer({"errors": [{"message": "rate limit exceeded"}]}, 429)
            act = getattr(server, name, None)
            if act is None:
                return self._problem(f"operation {name}: {query} {json.dumps(variables)[:300]}")
            content = act(variables or {})
        self._answer({"data": content})
