"""A Hugging Face Hub on this machine: as much of it as RL Zoo's ``push_to_hub`` and ``load_from_hub`` talk to."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

#: The only revision there ever is
REVISION = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories and their files, in memory; where it listens is its ``url``."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub in a thread, for as long as the context lasts."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            repo = f"{json.loads(body)['organization']}/{json.loads(body)['name']}"
            self.server.repositories.setdefault(repo, {".gitattributes": b"*.zip filter=lfs\n"})
            self._answer({"url": f"{self.server.url}/{repo}", "id": repo})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/commit/" in path:
            repo = "/".join(path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[repo][line["value"]["path"]] = content
            self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{REVISION}", "commitOid": REVISION})
        else:
            self._missing()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), tree="tree" in parts)
        elif parts[2:3] == ["resolve"]:
            self._send_file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._missing()

    do_HEAD = do_GET

    def _describe(self, repo: str, tree: bool) -> None:
        files = self.server.repositories.get(repo)
        if files is None:
            self._missing("RepoNotFound")
        elif tree:
            entries = [{"type": "file", "path": path, "size": len(data)} for path, data in files.items()]
            self._answer([entry | {"oid": _digest(files[str(entry["path"])])} for entry in entries])
        else:
            self._answer({"id": repo, "sha": REVISION, "siblings": [{"rfilename": path} for path in files]})

    def _send_file(self, repo: str, path: str) -> None:
        data = self.server.repositories.get(repo, {}).get(path)
        if data is None:
            self._missing()
        else:
            self._send(200, data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": REVISION})

    def _missing(self, code: str = "EntryNotFound") -> None:
        self._send(404, b"", {"X-Error-Code": code})

    def _answer(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


if __name__ == "__main__":  # python tests/hub.py PORT, to try the commands by hand
    with Hub(int(sys.argv[1])) as standing:
        standing.serve_forever()
