"""GET /debug/flight: the last thousand steps of the engine, for an admin."""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import parse_qs

import msgspec

from quire.engine.disguise import disguise
from quire.engine.outputs import RequestFailed
from quire.engine.recorder import Recording
from quire.server.errors import ApiError, from_failure, quoted
from quire.server.exchange import JSON, Exchange
from quire.server.service import Service


class DebugRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def flight(self, exchange: Exchange) -> None:
        """GET /debug/flight: a `Recording` as JSON; token ids are keyed hashes unless `?prompts=1` asks for them."""
        plain = _wants_prompts(exchange.scope["query_string"])
        self.service.check_accepting()
        try:
            answer = await self.service.engine.query("flight")
        except RequestFailed as failed:
            raise from_failure(failed.failure, failed.retry_after) from None
        await exchange.respond(200, await asyncio.to_thread(_as_json, answer.recording, plain), JSON)


def _wants_prompts(query: bytes) -> bool:
    fields = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    values = fields.pop("prompts", ["0"])
    if fields:
        raise ApiError("unknown_parameter", f"Unknown parameter {quoted(next(iter(fields)))}; there is prompts.")
    if values not in (["0"], ["1"]):
        raise ApiError("invalid_value", f"prompts: expected 0 or 1, found {quoted(values[-1])}.", "prompts")
    return values == ["1"]


def _as_json(recording: bytes, plain: bool) -> bytes:
    """For a thread: a long recording takes a while."""
    decoded = msgspec.msgpack.decode(recording, type=Recording)
    return msgspec.json.encode(decoded if plain else disguise(decoded, secrets.token_bytes(32)))
