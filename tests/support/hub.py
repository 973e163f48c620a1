"""A stand-in for the Hugging Face hub on loopback: the endpoints that huggingface_hub asks when it fetches a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StubHub:
    """Serves folders as models: `models` maps organisation/name to a folder. `asked` lists method and path of calls."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.asked: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[4:])
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.models or rest[:1] != ["resolve"]:
            return self._missing("RepoNotFound")
        file = self.models[name] / "/".join(rest[2:])
        if not file.is_file():
            return self._missing("EntryNotFound")
        data = file.read_bytes()
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data

    def _describe(self, name: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if name not in self.models:
            return self._missing("RepoNotFound")
        if rest[:1] in (["revision"], ["tree"]) and rest[1:2] not in (["main"], [COMMIT]):
            return self._missing("RevisionNotFound")
        files = sorted(path for path in self.models[name].rglob("*") if path.is_file())
        names = [str(path.relative_to(self.models[name])) for path in files]
        if rest[:1] == ["tree"]:
            entries = [
                {
                    "type": "file",
                    "path": file,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(file.encode()).hexdigest(),
                }
                for file, path in zip(names, files, strict=True)
            ]
            return 200, {}, json.dumps(entries).encode()
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in names]}
        return 200, {}, json.dumps(info).encode()

    def _missing(self, code: str) -> tuple[int, dict[str, str], bytes]:
        return 404, {"X-Error-Code": code, "X-Error-Message": "not found"}, b"{}"


@contextmanager
def stub_hub(models: dict[str, Path]) -> Iterator[StubHub]:
    """A running stand-in."""
    hub = StubHub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(body=True)

        def do_HEAD(self) -> None:
            self._send(body=False)

        def _send(self, *, body: bool) -> None:
            status, headers, data = hub.answer(self.command, urlsplit(self.path).path)
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
