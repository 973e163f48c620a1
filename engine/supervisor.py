"""Keeps one engine alive: starts it, watches it, restarts it. Runs on the event loop of the HTTP process.

Death is seen through a pidfd and through the end of the connection; a hang through the progress page: work is pending
and nothing on the page has moved for `hang_limit` seconds. A hung engine is told to dump its stacks and is then killed,
which makes it a dead one. The first restart is at once; from the second on there is a pause of 0.5 s, doubled up to
30 s, but only while engines die before they have done `GOOD_STEPS` steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError
from quire.engine.frames import build_id
from quire.engine.messages import Configure, FromEngine, Progress, Ready, Shutdown, StartFailed, ToEngine
from quire.engine.progress_page import PageSnapshot, ProgressPage
from quire.engine.transport import HttpTransport, ProtocolError, SocketHttpTransport, TransportClosed

GOOD_STEPS = 20
BACKOFF_SECONDS = (0.5, 30.0)
STACK_DUMP_SIGNAL = signal.SIGUSR1
"""The engine registers faulthandler for it, so that its stacks come out on stderr even when it is stuck in C."""
FLIGHT_DUMP_SIGNAL = signal.SIGUSR2
"""See `quire.engine.dumps`."""
DUMP_SECONDS = 1.0
CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})
"""Signals that a process brings upon itself; SIGKILL and SIGTERM come from outside."""
LOADING_HANG_FACTOR = 10
"""While loading, a disk may be silent for longer than a step may."""

logger = logging.getLogger("quire.engine")


class EngineStartError(QuireError):
    """The first engine could not be started; `exit_code` is the engine's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RunningEngine(Protocol):
    """A started engine, a process or a test's stand-in."""

    transport: HttpTransport

    def snapshot(self) -> PageSnapshot | None:
        """What its progress page says, or said last; None when it has none."""

    def moved_at(self) -> float:
        """Monotonic seconds at which its page last moved; inf when it has none. From any thread."""

    def dump_stacks(self) -> None:
        """Ask it to write its stacks to stderr, and its last steps to a file."""

    async def end(self, patience: float) -> int | None:
        """Wait `patience` seconds for it to exit by itself, then SIGTERM, then SIGKILL; its exit code. Idempotent."""


Launch = Callable[[], Awaitable[RunningEngine]]


class Listener(Protocol):
    """Who uses the engine."""

    def engine_up(self, ready: Ready) -> None:
        """An engine is ready; `Supervisor.send` reaches it."""

    def engine_said(self, messages: Sequence[FromEngine]) -> None:
        """Messages, in order."""

    def engine_down(self, suspects: tuple[str, ...]) -> None:
        """The engine is gone; everything it held is lost. Another one is on its way.

        `suspects`: the requests of the step under way, when the engine died of its work and not of a kill from outside.
        """

    def work_pending(self) -> bool:
        """Whether the engine ought to be moving."""


class ProcessEngine:
    """`python -m quire.engine` as a child process, in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes], transport: HttpTransport, page: ProgressPage) -> None:
        self.process = process
        self.transport = transport
        self._page = page
        self._exited = asyncio.Event()
        self._last_page: PageSnapshot | None = None
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    async def start(cls, command: Sequence[str]) -> ProcessEngine:
        """Start `command` with `--socket FD --page FD` added. Call from the main thread: the engine asks the kernel to
        be killed when the thread that started it ends."""
        ours, theirs = socket.socketpair()
        page = ProgressPage.create()
        try:
            process = _popen(command, theirs.fileno(), page.fd)
        except OSError:
            ours.close()
            page.close()
            raise
        finally:
            theirs.close()
            os.close(page.fd)
        return cls(process, await SocketHttpTransport.connect(ours), page)

    def snapshot(self) -> PageSnapshot | None:
        """See `RunningEngine.snapshot`."""
        return self._last_page or self._page.read()

    def moved_at(self) -> float:
        """See `RunningEngine.moved_at`."""
        try:
            return self._page.moved_at()
        except ValueError:  # it has just gone, and the page with it
            return math.inf

    def dump_stacks(self) -> None:
        """See `RunningEngine.dump_stacks`."""
        self._signal(STACK_DUMP_SIGNAL)
        self._signal(FLIGHT_DUMP_SIGNAL)

    async def end(self, patience: float) -> int | None:
        """See `RunningEngine.end`."""
        for wait, number in ((patience, signal.SIGTERM), (min(patience, 1.0), signal.SIGKILL)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), wait)
            self._signal(number)
        await self._exited.wait()
        self.transport.close()
        return self.process.returncode

    def _signal(self, number: signal.Signals) -> None:
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.process.wait()
        self._last_page = self._page.read()
        self._page.close()
        self._exited.set()


def _popen(command: Sequence[str], connection: int, page: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, "--socket", str(connection), "--page", str(page)],
        stdin=subprocess.DEVNULL,
        pass_fds=(connection, page),
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )


def engine_process(command: Sequence[str] = (sys.executable, "-m", "quire.engine")) -> Launch:
    """A `Launch` that starts engine processes."""
    return lambda: ProcessEngine.start(command)


class Backoff:
    """How long to wait before the next start. Pure."""

    def __init__(self) -> None:
        self._pause = 0.0

    def next(self, num_steps: int) -> float:
        """Seconds to wait when the last engine died after `num_steps` steps."""
        low, high = BACKOFF_SECONDS
        if num_steps >= GOOD_STEPS:
            self._pause = 0.0
        pause, self._pause = self._pause, min(max(2 * self._pause, low), high)
        return pause


class Supervisor:
    """See the module. All methods are called from the event loop's thread."""

    def __init__(
        self,
        config: EngineConfig,
        launch: Launch,
        listener: Listener,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        hang_limit: float = 30.0,
        faults: dict[str, str] | None = None,
    ) -> None:
        self._configure = Configure(config, build_id(), faults or {})
        self._launch = launch
        self._listener = listener
        self._on_progress = on_progress or (lambda _: None)
        self._hang_limit = hang_limit
        self._engine: RunningEngine | None = None
        self._ready = False
        self._watch: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._num_steps = 0
        self.restarts = 0
        """Engines that died after the first became ready."""
        self.hangs = 0
        self.protocol_errors = 0

    async def start(self) -> Ready:
        """Start the first engine; raises EngineStartError when it does not get ready."""
        ready = await self._start_one()
        self._up(ready)
        self._watch = asyncio.create_task(self._keep_alive())
        return ready

    async def stop(self, patience: float = 3.0) -> None:
        """End the engine and stop watching. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        self._ready = False
        if self._engine is not None:
            self._engine.transport.send(Shutdown())
            await self._engine.end(patience)
            self._engine = None

    def send(self, message: ToEngine) -> None:
        """Send to the engine; dropped while there is none, since what it would be about is lost too."""
        if self._ready and self._engine is not None:
            self._engine.transport.send(message)

    async def condemn(self, reason: str) -> None:
        """End an engine whose state is not to be trusted any more; another one follows."""
        if self._ready and self._engine is not None:
            await _kill(self._engine, reason)

    def moved_at(self) -> float:
        """Monotonic seconds at which the running engine last moved; inf without one. From any thread."""
        engine = self._engine
        return math.inf if engine is None else engine.moved_at()

    def _up(self, ready: Ready) -> None:
        self._ready = True
        self._listener.engine_up(ready)

    async def _keep_alive(self) -> None:
        while True:
            suspects = await self._serve()
            self._ready = False
            self.restarts += 1
            self._listener.engine_down(suspects)
            self._up(await self._restart())

    async def _restart(self) -> Ready:
        while True:
            await asyncio.sleep(self._backoff.next(self._num_steps))
            self._num_steps = 0
            try:
                return await self._start_one()
            except Exception as error:  # whatever it was, the next attempt is all that can be done
                logger.error("the engine could not be restarted: %s; trying again", error)

    async def _start_one(self) -> Ready:
        """Launch, configure, and wait for Ready."""
        try:
            self._engine = engine = await self._launch()
        except OSError as error:
            raise EngineStartError(f"the engine process could not be started: {error}", 1) from error
        engine.transport.send(self._configure)
        try:
            async with self._killed_when_hung(LOADING_HANG_FACTOR * self._hang_limit, lambda: True):
                while True:
                    for message in await engine.transport.receive():
                        match message:
                            case Progress():
                                self._on_progress(message)
                            case Ready():
                                return message
                            case StartFailed(text, exit_code):
                                raise EngineStartError(text, exit_code)
        except TransportClosed as closed:
            self._count(closed)
            code = await engine.end(1.0)
            raise EngineStartError(f"the engine ended while loading ({_exit_words(code)}): {closed}", 3) from closed
        except EngineStartError:
            await engine.end(1.0)
            raise
        except BaseException:
            await engine.end(0.0)
            raise

    async def _serve(self) -> tuple[str, ...]:
        """Hand on messages until the engine is gone; the requests of the step that it died of."""
        engine = self._engine
        assert engine is not None
        num_hangs, died_of_work = self.hangs, False
        try:
            async with self._killed_when_hung(self._hang_limit, self._listener.work_pending):
                while True:
                    self._listener.engine_said(await engine.transport.receive())
        except TransportClosed as closed:
            self._count(closed)
            code = await engine.end(0.1)
            died_of_work = self.hangs > num_hangs or _is_crash(code)
            logger.error("the engine is gone (%s); restarting it", _exit_words(code))
        except Exception:  # a fault of ours while handling what it said: nothing in flight can be trusted
            logger.exception("a message of the engine could not be handled; restarting it")
            await engine.end(0.0)
        page = engine.snapshot()
        self._num_steps = 0 if page is None else page.steps
        return page.step_request_ids if page is not None and died_of_work else ()

    @contextlib.asynccontextmanager
    async def _killed_when_hung(self, limit: float, pending: Callable[[], bool]) -> AsyncIterator[None]:
        """Watch the engine while the body runs."""
        watchdog = asyncio.create_task(self._watch_for_hang(limit, pending))
        try:
            yield
        finally:
            watchdog.cancel()

    async def _watch_for_hang(self, limit: float, pending: Callable[[], bool]) -> None:
        """Kill the engine when it has work and its page stands still for `limit` seconds."""
        engine = self._engine
        assert engine is not None
        seen: PageSnapshot | None = None
        since = time.monotonic()
        while True:
            await asyncio.sleep(min(limit / 10, 1.0))
            page = engine.snapshot()
            if page is None or page != seen or not pending():
                seen, since = page, time.monotonic()
            elif time.monotonic() - since > limit:
                self.hangs += 1
                await _kill(engine, f"the engine has not moved for {limit:g} s with work pending")
                return

    def _count(self, closed: TransportClosed) -> None:
        if isinstance(closed, ProtocolError):
            self.protocol_errors += 1
            logger.error("the connection to the engine was dropped: %s", closed)


async def _kill(engine: RunningEngine, reason: str) -> None:
    """For something that it did, so that its stacks and its last steps are wanted."""
    logger.error("%s; its stacks follow, then it is killed", reason)
    engine.dump_stacks()
    await asyncio.sleep(DUMP_SECONDS)
    await engine.end(0.0)


def _exit_words(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _is_crash(code: int | None) -> bool:
    """Whether an engine that ended so died of what it did: an error of its own, or a fault in native code."""
    return code is not None and (code > 0 or -code in CRASHES)
