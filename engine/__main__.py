"""The engine process: `python -m quire.engine --socket FD --page FD`, started by the HTTP process.

FD are inherited numbers: one end of a socket pair (`quire.engine.transport`) and the page of progress counters. The
first message is `Configure`; then come Progress, Ready or StartFailed, then steps. The order of the start matters: the
process binds its life to its parent's and shakes hands before torch is imported, which takes longer than all else.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from quire.engine.bounded_log import BoundedHandler
from quire.engine.dumps import Dumps
from quire.engine.errors import QuireError
from quire.engine.messages import (
    Add,
    Answer,
    Cancel,
    Configure,
    Failed,
    Failure,
    LiveIds,
    PoolPicture,
    Query,
    Ready,
    Shutdown,
    StartFailed,
    ToEngine,
    Watch,
)
from quire.engine.pool_picture import INTERVAL_SECONDS, PoolWatch
from quire.engine.progress_page import ProgressPage
from quire.engine.recorder import FlightRecorder, encode
from quire.engine.transport import EngineTransport, SocketEngineTransport, TransportClosed

if TYPE_CHECKING:
    from quire.engine.core import EngineCore

_PR_SET_PDEATHSIG = 1
log = logging.getLogger("quire.engine")


def main() -> int:
    """Run one engine until it is told to shut down or its parent is gone; the exit code."""
    parser = argparse.ArgumentParser(prog="quire.engine", description="The engine process; started by `quire serve`.")
    parser.add_argument("--socket", type=int, required=True, help="inherited socket to the HTTP process")
    parser.add_argument("--page", type=int, required=True, help="inherited memfd of progress counters")
    arguments = parser.parse_args()
    bind_to_parent()
    logging.getLogger().handlers[:] = [handler := BoundedHandler(sys.stderr.fileno())]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s engine: %(message)s", "%H:%M:%S"))
    page = ProgressPage(arguments.page)
    transport = SocketEngineTransport(socket.socket(fileno=arguments.socket))
    dumps = Dumps()
    dumps.listen()
    try:
        return serve(transport, page, dumps)
    except TransportClosed as closed:
        log.info("%s; the engine ends", closed)
        return 0
    except Exception:
        log.exception("the engine ends")
        return 1
    finally:
        transport.close()
        handler.close()


def bind_to_parent() -> None:
    """Die with the parent, survive its Ctrl-C, and show every thread's stack on a fatal signal or on SIGUSR1.

    A parent that died before the first line took effect has closed its end of the socket: the first receive says so.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)


def serve(transport: EngineTransport, page: ProgressPage, dumps: Dumps) -> int:
    """Configure, load, and run; the exit code. `dumps` gets the recorder."""
    page.set_state("loading")
    configure, *early = transport.receive(None)
    if not isinstance(configure, Configure):
        raise TransportClosed(f"the first message is {type(configure).__name__}, not Configure")
    try:
        core, ready = start(configure, transport, page)
    except QuireError as error:
        transport.send(StartFailed(str(error), error.exit_code))
        return error.exit_code
    except Exception as error:
        log.exception("the engine could not start")
        transport.send(StartFailed(f"the engine could not start: {type(error).__name__}: {error}", 1))
        return 1
    transport.send(ready)
    page.set_state("idle")
    recorder = dumps.recorder = FlightRecorder(core.scheduler, core.depth, time.monotonic)
    core.wrap_runner(recorder.watch)
    try:
        run(core, transport, page, early, recorder)
    except TransportClosed:
        raise
    except Exception:
        if not page.read().step_request_ids:
            # It died between two steps: anybody may have been the reason.
            page.begin_step(core.request_ids())
        dumps.write("crash")
        raise
    page.set_state("stopping")
    return 0


def start(configure: Configure, transport: EngineTransport, page: ProgressPage) -> tuple[EngineCore, Ready]:
    """Import what is slow, and build the engine. Raises QuireError."""
    # OpenMP threads that spin at a barrier while another process has their core made steps 7 times slower.
    # For some 0.1 ms they stay awake all the same: the next layer comes sooner than a sleeping thread wakes.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Importing torch makes hundreds of thousands of objects and no garbage: looking for some took a tenth of the time.
    gc.disable()
    begin = time.perf_counter()
    from quire.engine.process import Stopwatch, build_engine

    stopwatch = Stopwatch({"import": time.perf_counter() - begin})
    core, ready = build_engine(configure.config, transport.send, page, planted=configure.faults, stopwatch=stopwatch)
    # What lives now lives on: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.enable()
    return core, ready


def run(
    core: EngineCore,
    transport: EngineTransport,
    page: ProgressPage,
    early: list[ToEngine],
    recorder: FlightRecorder,
) -> None:
    """Take messages, step, send; returns at Shutdown, raises TransportClosed when the parent is gone."""
    messages = early
    watch = PoolWatch(core.pictures(time.monotonic()))
    while True:
        for message in messages:
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Watch):
                watch.renew(message.seconds, time.monotonic())
            else:
                handle(core, transport, message, recorder)
        if core.has_work():
            recorder.begin_step()
            outputs = core.step(recorder.now)
            page.end_step()
            if outputs is not None:
                transport.send(outputs)
        if watch.active and (frame := watch.look(time.monotonic)) is not None:
            transport.send(PoolPicture(frame))
        idle_seconds = INTERVAL_SECONDS if watch.active else None
        messages = transport.receive(0 if core.has_work() else idle_seconds)


def handle(core: EngineCore, transport: EngineTransport, message: ToEngine, recorder: FlightRecorder) -> None:
    """One message that is neither Shutdown nor Watch."""
    now = time.monotonic()
    if isinstance(message, Add | Cancel | LiveIds):
        recorder.took(message, now)
    match message:
        case Add():
            add(core, transport, message, now)
        case Cancel():
            core.cancel(message, now)
        case LiveIds():
            core.live_ids(message, now)
        case Query():
            violations = core.check() if message.kind == "check" else ()
            recording = encode(recorder.dump("asked")) if message.kind == "flight" else b""
            transport.send(Answer(message.query_id, core.statistics(), core.request_ids(), violations, recording))
        case _:
            log.error("unexpected message %s is ignored", type(message).__name__)


def add(core: EngineCore, transport: EngineTransport, message: Add, now: float) -> None:
    """Give the core a request; one that it cannot even take fails alone, as long as that left nothing behind."""
    try:
        core.add(message, now)
    except Exception as error:
        if message.request_id in core.request_ids() or core.check():
            raise
        log.exception("a request could not be taken")
        failure = Failure("internal_error", f"this request could not be taken: {type(error).__name__}")
        transport.send(Failed((message.request_id,), failure))


if __name__ == "__main__":
    sys.exit(main())
