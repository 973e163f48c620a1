"""GET /playground/pool: the block pool as it changes, as server-sent events."""

from __future__ import annotations

import contextlib

from quire.engine.pool_watchers import MAX_WATCHERS, PoolStream, TooManyWatchers
from quire.server.errors import ApiError, retry_after
from quire.server.exchange import Exchange, encode_json
from quire.server.service import Service

_RETRY_SECONDS = 10


class PoolRoutes:
    """The handler."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def pool(self, exchange: Exchange) -> None:
        """GET /playground/pool: a full frame, then changes, until the client leaves or the server drains."""
        self.service.check_accepting()
        if exchange.scope["method"] == "HEAD":
            await exchange.start_stream()
            await exchange.finish_stream()
            return
        try:
            frames = self.service.engine.watch_pool()
        except TooManyWatchers:
            text = f"{MAX_WATCHERS} clients watch the block pool already, and no more may; close a page that shows it."
            raise ApiError("too_many_watchers", text, headers=(retry_after(_RETRY_SECONDS),)) from None
        async with contextlib.aclosing(frames):
            await exchange.unless_client_leaves(_send(exchange, frames))


async def _send(exchange: Exchange, frames: PoolStream) -> None:
    """The headers at once: the first frame may wait for a step of the engine."""
    await exchange.start_stream()
    async for frame in frames:
        await exchange.write(b"data: " + encode_json(frame) + b"\n\n")
    await exchange.finish_stream()
