"""`quire serve`: from settings to an exit code.

Order of work: bind, answer 503, find the model, start the engine's process, and only then import what the answers need,
because the engine takes longer to start than this process does.

At SIGTERM: /ready turns 503 at once; after a grace, in which balancers notice (5 s, none where only this machine can
connect), new work gets 503 `server_draining`; what runs may end within --shutdown-timeout; the rest is cut off with an
error. An orchestrator must wait longer than grace + --shutdown-timeout + 5 s before it kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from quire.engine.async_engine import AsyncEngine
from quire.engine.hardware import available_memory
from quire.engine.text_worker import Load, TextWorker, check_templates
from quire.server import logs
from quire.server.busy_log import log_while_busy
from quire.server.daemon_thread import in_daemon_thread
from quire.server.errors import ApiError, unavailable
from quire.server.exchange import encode_json
from quire.server.gate import Gate
from quire.server.health_port import Answered, HealthPort
from quire.server.limits import Limits, connection_limit
from quire.server.listen import address_of, bind, bind_health
from quire.server.loading import LoadedModel, LoadProgress, find_model, start_lines
from quire.server.memory_gauge import MemoryGauge
from quire.server.metrics import CONTENT_TYPE
from quire.server.protocol import protocol_class
from quire.server.pulse import Pulse
from quire.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from quire.server.service import Service
    from quire.server.vitals import Vitals

GRACE_SECONDS = 5.0
CUT_OFF_SECONDS = 2.0
"""For error events to reach clients after the time to finish is over."""
LOADING_STOP_SECONDS = 1.5
KEEP_ALIVE_SECONDS = 75

logger = logging.getLogger("quire.server")


def serve(settings: ServerSettings) -> int:
    """Serve until told to stop. Returns the exit code; raises QuireError for what ends a start-up."""
    handler = logs.set_up(settings.debug)
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(contextlib.closing(bind(settings)))
            health_listener = bind_health(settings)
            life = _Life(settings, listener)
            if health_listener is not None:
                stack.enter_context(contextlib.closing(health_listener))
                stack.enter_context(contextlib.closing(HealthPort(health_listener, life.probe)))
                logger.info("Health on port %d", health_listener.getsockname()[1])
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            return runner.run(life.run())
    finally:
        handler.close()


def _import_create_app() -> Callable[..., FastAPI]:
    from quire.server.app import create_app

    return create_app


class _WebServer(uvicorn.Server):
    """uvicorn without its own signal handling: draining is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers as they are."""
        yield


class _Life:
    """One run of the server."""

    def __init__(self, settings: ServerSettings, listener: socket.socket) -> None:
        self.settings, self.listener = settings, listener
        self.limits = Limits()
        self.progress = LoadProgress(sys.stderr)
        self.gate = Gate(self.limits, lambda: self.progress.stage)
        self.engine: AsyncEngine | None = None
        self.service: Service | None = None
        self.vitals: Vitals | None = None
        self.pulse = Pulse()
        self.worker: TextWorker | None = None
        self.signalled = asyncio.Event()
        self.signal = signal.SIGTERM

    async def run(self) -> int:
        """Load, answer, drain. Returns the exit code."""
        self._catch_signals()
        web = _WebServer(self._web_config())
        serving = asyncio.create_task(web.serve(sockets=[self.listener]))
        told = asyncio.create_task(self.signalled.wait())
        loading = asyncio.create_task(self._load())
        beating = asyncio.create_task(self.pulse.keep_beating())
        busy = gauging = None
        try:
            await asyncio.wait({loading, told, serving}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return await self._give_up(loading)
            await loading
            if not self.settings.disable_log_stats and self.engine is not None:
                busy = asyncio.create_task(log_while_busy(self.engine))
            if self.service is not None:
                gauging = asyncio.create_task(MemoryGauge(self.service.admission, available_memory()).watch())
            await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
            return 0
        finally:
            for task in (loading, told, beating, busy, gauging):
                if task is not None:
                    task.cancel()
            web.should_exit = True
            await serving
            if self.worker is not None:
                self.worker.close()
            if self.service is not None:
                self.service.text.close()

    def probe(self, path: str, authorization: bytes | None) -> Answered:
        """What the health port answers, in its own thread. Raises ApiError."""
        if path in ("/health", "/livez"):
            return Answered(encode_json(self.gate.alive() if self.vitals is None else self.vitals.health()))
        if path not in ("/ready", "/readyz", "/metrics"):
            raise ApiError("unknown_url", "This port answers to /health, /ready and /metrics.")
        if self.vitals is None or self.service is None:
            raise unavailable("model_loading", "The model is still loading.", 2)
        if path == "/metrics":
            self.service.keys.identify(authorization)
            return Answered(self.service.metrics.exposition(), CONTENT_TYPE)
        return Answered(encode_json(self.vitals.ready()))

    def _web_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.gate,
            interface="asgi3",
            http=protocol_class(self.limits, connection_limit()),
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            root_path=self.settings.root_path,
            ssl_keyfile=self.settings.ssl_keyfile,
            ssl_certfile=self.settings.ssl_certfile,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )

    async def _load(self) -> None:
        """Everything between the open port and the first answer. Raises QuireError."""
        settings = self.settings
        model = await in_daemon_thread(lambda: find_model(settings, self.progress))
        self.engine = engine = AsyncEngine(
            settings.to_engine_config(model.folder, model.tokenizer.vocab_size),
            model.tokenizer,
            max_queued=settings.max_num_queued_reqs,
            on_progress=self.progress.load,
        )
        started = time.monotonic()
        starting = asyncio.create_task(engine.start())
        try:
            # The engine's process is on its way: now there is time for the imports that answers need.
            self._open(await in_daemon_thread(_import_create_app), engine, model)
            if settings.model is not None or settings.chat_template is not None:
                # The template that ships with the package is known to behave.
                await in_daemon_thread(lambda: check_templates(model.tokenizer.files, model.tokenizer.model_name))
            facts = await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        self.progress.close()
        for line in start_lines(facts, time.monotonic() - started):
            logger.info("%s", line)
        for warning in model.tokenizer.warnings:
            logger.warning("%s", warning)
        logger.info("Serving %s on %s", self.models, address_of(self.listener, settings))

    def _open(self, create_app: Callable[..., FastAPI], engine: AsyncEngine, model: LoadedModel) -> None:
        """Let the application answer: with 503 until the engine is ready."""
        self.worker = TextWorker(Load(model.tokenizer.files, model.tokenizer.model_name))
        app = create_app(
            self.settings,
            engine,
            model.tokenizer,
            defaults=model.defaults,
            limits=self.limits,
            worker=self.worker,
            pulse=self.pulse,
        )
        self.service, self.vitals = app.state.service, app.state.vitals
        self.models = ", ".join(app.state.service.models)
        self.gate.open(app)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.signalled.is_set():
            # The engine goes with this process: its socket ends, and the kernel kills it.
            os._exit(128 + number)
        self.signal = number
        self.signalled.set()
        if self.service is not None:
            self.service.leaving = True

    async def _give_up(self, loading: asyncio.Task[None]) -> int:
        """End before anything was served: 143 for SIGTERM, 130 for SIGINT."""
        loading.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOADING_STOP_SECONDS):
                await asyncio.gather(loading, return_exceptions=True)
                if self.engine is not None:
                    await self.engine.stop()
        return 128 + self.signal

    async def _drain(self) -> None:
        assert self.engine is not None
        assert self.service is not None
        logger.info("Shutting down: %d requests under way", self.service.admission.num_requests)
        if not self.settings.is_local():
            await asyncio.sleep(GRACE_SECONDS)
        self.service.draining = True
        await self.service.admission.wait_idle(self.settings.shutdown_timeout)
        await self.engine.stop()
        # What the engine cut off is told so; and a client that has its answer may close the connection first.
        await self.service.admission.wait_idle(CUT_OFF_SECONDS)
        logger.info("Stopped")
