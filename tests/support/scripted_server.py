"""A small server on the loopback interface that says what a test wrote down, for tests of the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECONDS = 20.0


class ScriptedServer(ThreadingHTTPServer):
    """Streams every word of `answer` like an OpenAI server; keeps the bodies that it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answer = "fine, thanks"
        self.bodies: list[dict[str, Any]] = []
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.finish_reason = "stop"
        self.num_loading = 0
        """How many questions for the models find them loading."""
        self.go_on = threading.Event()
        """Answers wait for it after their first word."""
        self.go_on.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is none of our business."""


class Handler(BaseHTTPRequestHandler):
    """The answers of a ScriptedServer."""

    server: ScriptedServer

    def do_GET(self) -> None:
        """The version, or the models."""
        if self.path == "/v1/models" and self.server.num_loading:
            self.server.num_loading -= 1
            self._begin(503, "application/json", {"Retry-After": "0"})
            self.wfile.write(b'{"error": {"message": "The model is still loading.", "code": "model_loading"}}')
            return
        answers = {"/version": {"version": "0"}, "/v1/models": {"data": [{"id": "scripted"}]}}
        self._begin(200, "application/json")
        self.wfile.write(json.dumps(answers[self.path]).encode())

    def do_POST(self) -> None:
        """A streamed answer, or the refusal."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if self.server.refusal is not None:
            status, error = self.server.refusal
            self._begin(status, "application/json")
            self.wfile.write(json.dumps({"error": error}).encode())
            return
        words = [f"{word} " for word in self.server.answer.split(" ")]
        is_chat = self.path == "/v1/chat/completions"
        self._begin(200, "text/event-stream")
        for number, word in enumerate(words):
            reason = self.server.finish_reason if number == len(words) - 1 else None
            piece = {"delta": {"content": word}} if is_chat else {"text": word}
            self._frame({"choices": [{"index": 0, "finish_reason": reason, **piece}]})
            assert self.server.go_on.wait(SECONDS)
        self._frame({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(words)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _begin(self, status: int, kind: str, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _frame(self, chunk: Any) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: tests look at the answers."""
