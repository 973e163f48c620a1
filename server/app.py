"""The HTTP application: every route with who may call it. Importing this does not import torch."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.routing import Route

from quire.engine.text_worker import TextWorker
from quire.server.edge import Edge
from quire.server.errors import ApiError, quoted
from quire.server.exchange import Access, Endpoint, Exchange
from quire.server.generation import Engine
from quire.server.limits import Limits
from quire.server.not_built_routes import NOT_BUILT
from quire.server.pulse import Pulse
from quire.server.routes_debug import DebugRoutes
from quire.server.routes_openai import OpenAIRoutes
from quire.server.routes_page import PageRoutes
from quire.server.routes_pool import PoolRoutes
from quire.server.routes_probe import ProbeRoutes
from quire.server.routes_text import TextRoutes
from quire.server.service import SamplingDefaults, Service
from quire.server.settings import ServerSettings
from quire.server.text_work import Tokenizer
from quire.server.vitals import Vitals

Handler = Callable[[Exchange], Awaitable[None]]


def create_app(
    settings: ServerSettings,
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    defaults: SamplingDefaults | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
    worker: TextWorker | None = None,
    pulse: Pulse | None = None,
) -> FastAPI:
    """The application that serves one model. `app.state.service` is what its routes share, `app.state.vitals` what
    /health and /ready say.

    `defaults` are the model's own sampling defaults; `clock` gives monotonic seconds; `worker` tokenizes what is large,
    in a process that can be killed; `pulse` tells how late the event loop is. Nothing is started here and nothing ends
    with the app: engine, tokenizer and worker belong to the caller.
    """
    limits = limits or Limits()
    service = Service(settings, engine, tokenizer, defaults, limits, clock, worker, pulse)
    app = FastAPI(title="Quire", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.vitals = vitals = Vitals(service, pulse)
    app.router.redirect_slashes = False

    def endpoint(handler: Handler, access: Access, *methods: str) -> Endpoint:
        return Endpoint(
            handler,
            access=access,
            methods=methods,
            keys=service.keys,
            limits=limits,
            on_error=_count(service),
            on_gone=lambda gone: service.metrics.client_gone(stalled=gone.stalled),
        )

    table = _table(service, vitals)
    for path, handler, access, method in table:
        app.router.routes.append(Route(path, endpoint(handler, access, method)))
    for path in NOT_BUILT:
        app.router.routes.append(Route(path, endpoint(_refuse_not_built(path), Access.KEY)))
    app.router.default = endpoint(_refuse_unknown([path for path, *_ in table if "{" not in path]), Access.KEY)
    app.add_middleware(
        Edge,
        limits=limits,
        local_only=settings.is_local() and settings.uds is None and not service.keys,
        allowed_origins=settings.allowed_origins,
    )
    return app


def _table(service: Service, vitals: Vitals) -> list[tuple[str, Handler, Access, str]]:
    openai, text, probe = OpenAIRoutes(service), TextRoutes(service), ProbeRoutes(service, vitals)
    page, pool = PageRoutes(), PoolRoutes(service)
    return [
        ("/v1/chat/completions", openai.chat_completions, Access.KEY, "POST"),
        ("/v1/completions", openai.completions, Access.KEY, "POST"),
        ("/v1/models", openai.models, Access.KEY, "GET"),
        # A model's name may hold slashes, as hub names do.
        ("/v1/models/{name:path}", openai.model, Access.KEY, "GET"),
        ("/tokenize", text.tokenize, Access.KEY, "POST"),
        ("/detokenize", text.detokenize, Access.KEY, "POST"),
        ("/metrics", probe.metrics, Access.KEY, "GET"),
        ("/load", probe.load, Access.KEY, "GET"),
        ("/version", probe.version, Access.KEY, "GET"),
        ("/health", probe.health, Access.OPEN, "GET"),
        ("/livez", probe.health, Access.OPEN, "GET"),
        ("/ready", probe.ready, Access.OPEN, "GET"),
        ("/readyz", probe.ready, Access.OPEN, "GET"),
        ("/", page.page, Access.OPEN, "GET"),
        ("/playground/pool", pool.pool, Access.ADMIN, "GET"),
        ("/debug/flight", DebugRoutes(service).flight, Access.ADMIN, "GET"),
        ("/playground/{name}", page.asset, Access.OPEN, "GET"),
    ]


def _count(service: Service) -> Callable[[Exchange, ApiError], None]:
    def count(exchange: Exchange, error: ApiError) -> None:
        # A probe that is told "not ready" was not refused anything.
        if error.status in (429, 503) and not exchange.started and exchange.scope["method"] == "POST":
            service.metrics.rejected(error.code)

    return count


def _refuse_not_built(path: str) -> Handler:
    async def refuse(exchange: Exchange) -> None:
        raise ApiError("not_built", f"{path}: {NOT_BUILT[path]}.")

    return refuse


def _refuse_unknown(paths: list[str]) -> Handler:
    async def refuse(exchange: Exchange) -> None:
        text = f"Unknown URL {quoted(exchange.scope['path'])}; this server answers to {', '.join(paths)}."
        raise ApiError("unknown_url", text)

    return refuse
