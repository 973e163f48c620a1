"""What answers before the application exists: the port is open from the first moment, and says that a model loads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from quire.server.edge import new_request_id
from quire.server.errors import unavailable
from quire.server.exchange import JSON, Exchange, Receive, Scope, Send
from quire.server.limits import Limits

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_ALIVE = ("/health", "/livez")


class Gate:
    """An ASGI app that hands everything to another one as soon as there is one; `stage` says what is done before."""

    def __init__(self, limits: Limits, stage: Callable[[], str] = lambda: "") -> None:
        self._limits, self._stage = limits, stage
        self._app: App | None = None

    def open(self, app: App) -> None:
        """From now on `app` answers."""
        self._app = app

    def alive(self) -> dict[str, object]:
        """What /health says before there is an application."""
        return {"status": "ok", "engine": "loading", "restarts": 0, "stage": self._stage()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 503 model_loading; the process is alive meanwhile, which /health says."""
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            exchange = Exchange(scope, receive, send, self._limits)
            exchange.extra_headers.append((b"x-request-id", new_request_id()))
            if scope["path"].removeprefix(scope.get("root_path", "")) in _ALIVE:
                await exchange.respond(200, msgspec.json.encode(self.alive()), JSON)
            else:
                await exchange.respond_error(unavailable("model_loading", "The model is still loading.", 2))
