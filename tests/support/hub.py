"""A hub on this machine: as much of the Hugging Face Hub as uploading and loading a model takes."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.beside import serving

COMMIT = "c0ffee" + "0" * 34
TOKEN = "planted-token-of-a-test"


class Hub(ThreadingHTTPServer):
    """``repositories``: their files; ``private``: what was said when they were made."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    with serving(server):
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.private.setdefault(name, asked["visibility"] == "private")
            self.server.repositories.setdefault(name, {".gitattributes": b""})
            return self._json({"url": f"{self.server.address}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, act = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if act == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._json({"files": modes})
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        return self._json({"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        found = re.match(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision)/[^/?]+)?(?:\?|$)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        name = (found or file) and (found or file)[1]
        if name not in self.server.repositories:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.server.repositories[name]
        if file is not None:
            return self._file(files.get(file[2].partition("?")[0]))
        if found[2] == "tree":
            return self._json([{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])
        return self._json(
            {
                "id": name,
                "sha": COMMIT,
                "private": self.server.private.get(name, True),
                "siblings": [{"rfilename": path} for path in files],
            }
        )

    do_HEAD = do_GET

    def _file(self, data: bytes | None) -> None:
        if data is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"'})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
