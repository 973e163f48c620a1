"""A server that answers a load test as a function of the prompt alone; faults can be planted in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ("alpha", "beta", "gamma", "delta")


@dataclass
class BenchTarget:
    """OpenAI's completions and chat, Ollama's generate, /tokenize. Token t of an answer is WORDS[hash of (prompt, t)].

    `wrong_at`: with company, that token of the answer is another one. `broken`: requests with these numbers fail.
    """

    ids: bool = True
    logprobs: bool = True
    salt: bool = True
    tokenizes: bool = False
    wrong_at: int | None = None
    broken: Sequence[int] = ()
    margin: float = 1.5
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    running: int = 0
    loads: int = 0

    @asynccontextmanager
    async def served(self) -> AsyncIterator[BenchTarget]:
        """On a free port, while the block runs."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/api/tags", self._tags)
        app.router.add_post("/tokenize", self._tokenize)
        for path in ("/v1/completions", "/v1/chat/completions", "/api/generate"):
            app.router.add_post(path, self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stub"}]})

    async def _tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "stub:latest"}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            raise web.HTTPNotFound
        text = (await request.json())["prompt"]
        return web.json_response({"tokens": [int(hashlib.sha256(word.encode()).hexdigest()[:6], 16)
                                             for word in text.split()]})  # fmt: skip

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        for name, allowed in (("return_token_ids", self.ids), ("logprobs", self.logprobs), ("cache_salt", self.salt)):
            if name in body and not allowed:
                return web.json_response({"error": {"message": f"unknown field {name}"}}, status=400)
        self.loads += 1
        if self.loads in self.broken:
            return web.json_response({"error": {"message": "busy"}}, status=503)
        self.running += 1
        try:
            return await self._stream(request, body)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        prompt = json.dumps(body.get("prompt", body.get("messages")))
        ollama, chat = request.path.startswith("/api"), "messages" in body
        count = body["options"]["num_predict"] if ollama else body.get("max_completion_tokens", body.get("max_tokens"))
        for position in range(count):
            digest = hashlib.sha256(f"{prompt} {position}".encode()).digest()[0]
            await asyncio.sleep(0)
            token = (digest + (position == self.wrong_at and self.running > 1)) % len(WORDS)
            chunk = self._chunk(body, token, chat=chat, ollama=ollama)
            await response.write(chunk if ollama else b"data: " + chunk + b"\n")
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
        if ollama:
            last: dict[str, Any] = {"response": "", "done": True, "done_reason": "length", "eval_count": count}
            await response.write(json.dumps(last).encode() + b"\n")
        else:
            end = {"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "length"}], "usage": usage}
            await response.write(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    def _chunk(self, body: dict[str, Any], token: int, *, chat: bool, ollama: bool) -> bytes:
        word = f" {WORDS[token]}"
        if ollama:
            return json.dumps({"response": word, "done": False}).encode() + b"\n"
        choice: dict[str, Any] = {"index": 0, "delta": {"content": word}} if chat else {"index": 0, "text": word}
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
        if "logprobs" in body and chat:
            top = [{"token": word, "logprob": -0.1}, {"token": "?", "logprob": -0.1 - self.margin}]
            choice["logprobs"] = {"content": [{"token": word, "logprob": -0.1, "top_logprobs": top}]}
        elif "logprobs" in body:
            tops = [{word: -0.1, "?": -0.1 - self.margin}]
            choice["logprobs"] = {"tokens": [word], "token_logprobs": [-0.1], "top_logprobs": tops}
        return json.dumps({"choices": [choice]}).encode() + b"\n"
