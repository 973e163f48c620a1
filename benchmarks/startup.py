"""`quire bench startup`: from `quire serve` to the first streamed token, imports included: what a user waits for.

A server is started in a process of its own, asked for one streamed token as soon as it accepts requests, and stopped;
several times, after one run that warms the file cache.
"""

from __future__ import annotations

import json
import statistics
import sys
from time import perf_counter

from quire.clients.client import Client
from quire.clients.local_server import LocalServer
from quire.clients.terminal import Parser


def measure(model: str | None) -> dict[str, float]:
    """Seconds from the start of the process to `ready` and to the first streamed `token`."""
    start = perf_counter()
    with LocalServer(model) as server, Client(server.url) as client:
        server.wait_ready()
        ready = perf_counter() - start
        with client.complete("Once", stream=True, max_tokens=1) as stream:
            next(iter(stream))
        return {"ready": ready, "token": perf_counter() - start}


def main(words: list[str]) -> int:
    """Print the median and the range of each figure."""
    parser = Parser("bench startup", "From start to first token.")
    parser.add_argument("model", nargs="?", help="folder or Hugging Face name [the starter model]")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after one that warms the file cache [5]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse(words)
    measure(options.model)
    runs = [measure(options.model) for _ in range(options.runs)]
    seconds = {name: sorted(run[name] for run in runs) for name in ("ready", "token")}
    if options.json:
        print(json.dumps({"model": options.model or "starter", "seconds": seconds}))
        return 0
    print(f"quire serve {options.model or ''}, {options.runs} runs")
    for name, figures in seconds.items():
        median = statistics.median(figures)
        print(f"  to {name:<6}{median:7.2f} s   ({figures[0]:.2f} .. {figures[-1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
