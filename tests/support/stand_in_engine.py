"""An engine process without torch and without a model, for tests of the supervisor.

    python stand_in_engine.py [--refuse | --exit N] --socket FD --page FD

It shakes hands, gets ready, and gives each request its prompt's tokens, again and again, one a step. Some first prompt
tokens are orders: see `ORDERS`.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import signal
import socket
import sys
import time

from quire.engine.messages import (
    Add,
    Answer,
    Cancel,
    Configure,
    OutputRow,
    Query,
    Ready,
    Shutdown,
    StartFailed,
    Statistics,
    StepOutputs,
    pack_ids,
    unpack_ids,
)
from quire.engine.progress_page import ProgressPage
from quire.engine.transport import SocketEngineTransport, TransportClosed

DIE, HANG, GARBAGE, SLOW, CRASH = 2001, 2002, 2003, 2004, 2005
ORDERS = {
    DIE: "SIGKILL itself",
    HANG: "stand still for ever",
    GARBAGE: "write bytes that are no frame",
    CRASH: "die of a fault in native code",
    SLOW: "take a second and a half for one step, layer by layer",
}


def obey(order: int, connection: socket.socket, page: ProgressPage) -> None:
    """Carry out one of `ORDERS`; other tokens are none."""
    if order == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if order == CRASH:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == HANG:
        while True:
            time.sleep(1)
    if order == GARBAGE:
        connection.setblocking(True)
        connection.sendall(b"\xff" * 64)
    if order == SLOW:
        for _ in range(30):
            time.sleep(0.05)
            page.tick()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--page", type=int, required=True)
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--exit", type=int, default=None)
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM and Shutdown")
    arguments = parser.parse_args()
    if arguments.exit is not None:
        return int(arguments.exit)
    if arguments.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    connection = socket.socket(fileno=arguments.socket)
    transport, page = SocketEngineTransport(connection), ProgressPage(arguments.page)
    configure, *early = transport.receive(None)
    assert isinstance(configure, Configure)
    if arguments.refuse:
        transport.send(StartFailed("model tiny: config.json is missing", 3))
        transport.close()
        return 3
    ready = Ready(2048, 2048, 64, 16, 8, 256, 0, 0, "float32", "float32", "cpu", "none: a stand-in", {})
    transport.send(ready)
    page.set_state("idle")
    sequences: dict[tuple[str, int], tuple[list[int], int, int]] = {}
    suspects: set[str] = set()
    messages, steps = early, 0
    try:
        while True:
            for message in messages:
                match message:
                    case Add():
                        ids = unpack_ids(message.prompt_token_ids)
                        if message.alone:
                            suspects.add(message.request_id)
                        for choice in range(message.params.n):
                            sequences[message.request_id, choice] = (ids, 0, message.params.max_tokens)
                    case Cancel(request_id, choice, _):
                        for key in [k for k in sequences if k[0] == request_id and choice in (None, k[1])]:
                            del sequences[key]
                    case Query(query_id, _):
                        known = tuple({request_id for request_id, _ in sequences})
                        transport.send(Answer(query_id, Statistics(num_running=len(sequences)), known))
                    case Shutdown() if not arguments.deaf:
                        return 0
            if sequences:
                alone = next((key[0] for key in sequences if key[0] in suspects), None)
                step = {key: sequences[key] for key in sequences if alone in (None, key[0])}
                page.begin_step([request_id for request_id, _ in step])
                rows = []
                for (request_id, choice), (ids, count, most) in step.items():
                    if count == 0:
                        obey(ids[0], connection, page)
                    token = ids[count % len(ids)]
                    reason = "length" if count + 1 == most else None
                    rows.append(OutputRow(request_id, choice, pack_ids([token]), finish_reason=reason))
                    sequences[request_id, choice] = (ids, count + 1, most)
                    if reason:
                        del sequences[request_id, choice]
                steps += 1
                page.end_step()
                statistics = Statistics(num_running=len(sequences), num_steps=steps)
                transport.send(StepOutputs(rows=tuple(rows), statistics=statistics))
            messages = transport.receive(0 if sequences else None)
    except TransportClosed:
        return 0


if __name__ == "__main__":
    sys.exit(main())
