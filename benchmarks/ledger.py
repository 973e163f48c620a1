"""Whether the parts of each request's latency ledger add up to the time that its client measured.

`python -m quire.benchmarks.ledger` sends requests of mixed lengths, half of them streamed, some with a stop string or
two choices, and compares three figures of each: the sum of the parts, the server's own `total_ms`, and the client's
clock, from the call to the last byte of the answer. Between the last two lie the connection and the client itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from contextlib import nullcontext
from time import perf_counter
from typing import Any, NamedTuple

from quire.benchmarks.load import connect
from quire.benchmarks.server_facts import first_model
from quire.benchmarks.words import COMMON
from quire.clients.servers import Server, own

PARTS = (
    *("queue_ms", "prefill_ms", "others_prefill_ms", "decode_ms", "preempted_ms", "sampling_ms"),
    *("text_ms", "client_ms"),
)
_ROUNDING_MS = 0.005
"""Nine figures with three decimals."""


class Told(NamedTuple):
    """One request: its ledger, and the client's time, in milliseconds."""

    timings: dict[str, Any]
    client_ms: float

    @property
    def difference(self) -> float:
        """Between the parts and their total."""
        return abs(sum(float(self.timings[part]) for part in PARTS) - float(self.timings["total_ms"]))

    @property
    def unexplained(self) -> float:
        """What the client measured beyond the total."""
        return self.client_ms - float(self.timings["total_ms"])


def bodies(count: int, max_tokens: int, seed: int) -> list[dict[str, Any]]:
    """Requests of a seed: mostly short prompts, every eighth a long one that delays the others."""
    chooser = random.Random(seed)
    words = COMMON.split()
    made = []
    for number in range(count):
        length = chooser.randint(150, 400) if number % 8 == 0 else chooser.randint(3, 40)
        body: dict[str, Any] = {
            "prompt": " ".join(chooser.choices(words, k=length)),
            "max_tokens": chooser.randint(1, max_tokens),
            "seed": number,
            "n": 2 if number % 16 == 5 else 1,
            "stream": number % 2 == 0,
            "quire": {"timings": True},
        }
        if number % 5 == 0:
            body["stop"] = [" was"]
        made.append(body)
    return made


async def measure(address: str, requests: list[dict[str, Any]], concurrency: int) -> list[Told]:
    """Send every request, at most `concurrency` at a time."""
    http, url = connect(address)
    async with http:
        model = await first_model(http, url, {}, "openai")
        slots = asyncio.Semaphore(concurrency)

        async def one(body: dict[str, Any]) -> Told:
            data = json.dumps({"model": model, **body}).encode()
            headers = {"content-type": "application/json"}
            async with slots:
                begun = perf_counter()
                async with http.post(url + "/v1/completions", data=data, headers=headers) as answer:
                    answer.raise_for_status()
                    read = await answer.read()
                client_ms = 1000 * (perf_counter() - begun)
            return Told(timings_of(read, body["stream"]), client_ms)

        return await asyncio.gather(*map(one, requests))


def timings_of(answer: bytes, stream: bool) -> dict[str, Any]:
    """The ledger in an answer; raises KeyError when it has none."""
    if stream:
        answer = answer.rpartition(b"\n\ndata: [DONE]")[0].rpartition(b"data: ")[2]
    timings: dict[str, Any] = json.loads(answer)["quire"]["timings"]
    return timings


def report(told: list[Told], concurrency: int) -> tuple[str, bool]:
    """Lines for people, and whether every ledger adds up and none is longer than its client's time."""
    differences = [one.difference for one in told]
    unexplained = sorted(one.unexplained for one in told)
    shares = sorted(one.unexplained / one.client_ms for one in told)
    everything = sum(one.client_ms for one in told)
    lines = [f"{len(told)} requests, {concurrency} at a time"]
    lines.append(f"  the parts against total_ms        largest difference {max(differences):.6f} ms")
    for name, figures, unit in (("ms", unexplained, "ms"), ("share", [100 * share for share in shares], "%")):
        middle, late = figures[len(figures) // 2], figures[len(figures) * 99 // 100]
        what = "client's time beyond total_ms" if name == "ms" else "  as a share of the client's time"
        lines.append(
            f"  {what:<34}median {middle:.3f} {unit}, p99 {late:.3f} {unit}, least {figures[0]:.3f} {unit}, "
            f"largest {figures[-1]:.3f} {unit}"
        )
    lines.append(f"  of all time together               {100 * sum(unexplained) / everything:.3f} %")
    lines.append("  where the time went")
    for part in PARTS:
        lines.append(f"    {part:<20}{100 * sum(one.timings[part] for one in told) / everything:7.2f} %")
    delayed = sum(bool(one.timings["delayed_by"]) for one in told)
    lines.append(f"  {delayed} requests name a neighbour that delayed them")
    return "\n".join(lines), max(differences) <= _ROUNDING_MS and unexplained[0] >= -_ROUNDING_MS


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; 1 when some ledger does not add up."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.ledger", description=__doc__)
    parser.add_argument("--base-url", help="a server that runs already; default: one of our own with the starter model")
    parser.add_argument("--num-requests", type=int, default=1000)
    parser.add_argument("--max-concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    requests = bodies(options.num_requests, options.max_tokens, options.seed)
    with nullcontext(Server(options.base_url, None, None)) if options.base_url else own(None) as server:
        told = asyncio.run(measure(server.url.rstrip("/"), requests, options.max_concurrency))
    text, adds_up = report(told, options.max_concurrency)
    sys.stdout.write(text + "\n")
    return 0 if adds_up else 1


if __name__ == "__main__":
    sys.exit(main())
