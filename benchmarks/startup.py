"""From `quire serve` to the first streamed token, imports included: what a user waits for.

`python -m quire.benchmarks.startup [MODEL]` starts a server in a process of its own, asks it for one streamed token as
soon as it accepts requests, and stops it; several times, after one run that warms the file cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from time import perf_counter

from quire.clients.client import Client
from quire.clients.local_server import LocalServer


def measure(model: str | None) -> dict[str, float]:
    """Seconds from the start of the process to `ready` and to the first streamed `token`."""
    start = perf_counter()
    with LocalServer(model) as server, Client(server.url) as client:
        server.wait_ready()
        ready = perf_counter() - start
        with client.complete("Once", stream=True, max_tokens=1) as stream:
            next(iter(stream))
        return {"ready": ready, "token": perf_counter() - start}


def main(argv: list[str] | None = None) -> int:
    """Print the median and the range of each figure."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.startup", description=__doc__)
    parser.add_argument("model", nargs="?", help="folder or Hugging Face name; default: the starter model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    measure(options.model)
    runs = [measure(options.model) for _ in range(options.runs)]
    seconds = {name: sorted(run[name] for run in runs) for name in ("ready", "token")}
    if options.json:
        sys.stdout.write(json.dumps({"model": options.model or "starter", "seconds": seconds}) + "\n")
        return 0
    sys.stdout.write(f"quire serve {options.model or ''}, {options.runs} runs\n")
    for name, figures in seconds.items():
        median = statistics.median(figures)
        sys.stdout.write(f"  to {name:<6}{median:7.2f} s   ({figures[0]:.2f} .. {figures[-1]:.2f})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
