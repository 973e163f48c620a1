"""`quire bench soak`: starts the server under a mixed load with faults, and holds it to the reliability goals.

Each part has a server of its own, so that one part's damage is not another's. The report is a table, JSON and a plot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from quire.benchmarks import soak_parts as parts
from quire.benchmarks.servers import StartedServer
from quire.benchmarks.soak_clients import Outcome, mixed
from quire.benchmarks.soak_parts import Place
from quire.benchmarks.soak_report import Report, Row, plot, table
from quire.benchmarks.soak_watch import Sample, Tally, Watch, engine_pid, holding, leftovers, slope
from quire.clients.terminal import Parser

PARTS = ("soak", "overload", "kills", "disconnects", "slow-readers", "head-of-line", "fairness")
WARM_UP_SHARE = 0.3
"""Of the part without kills: buffers and caches reach their size."""
BURST_EVERY, BURST_SECONDS = 120.0, 10.0
_QUEUE = 64


def main(words: list[str]) -> int:
    """Run the chosen parts; 1 when a goal is not kept."""
    options = _parser().parse(words)
    report = asyncio.run(_run(options))
    print(table(report))
    options.result_dir.mkdir(parents=True, exist_ok=True)
    file = options.result_dir / "soak.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    print(f"\nwrote {file}")
    if report.samples:
        plot(report, options.result_dir / "soak.png")
        print(f"wrote {options.result_dir / 'soak.png'}")
    return int(any(row.kept is False for row in report.rows))


def _parser() -> Parser:
    parser = Parser("quire bench soak", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--minutes", type=float, default=10.0, help="of mixed load")
    parser.add_argument("--clients", type=int, default=12, help="of the mixed load")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds, in its second half")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disconnects", type=int, default=400)
    parser.add_argument("--slow-readers", type=int, default=100)
    parser.add_argument("--target-itl-ms", type=float, default=50.0, help="of the part head-of-line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result-dir", type=Path, default=Path("benchmarks/results"))
    return parser


async def _run(options: object) -> Report:
    given = vars(options)
    rows: list[Row] = []
    samples: list[Sample] = []
    moments: list[float] = []
    busy = [os.getloadavg()[0]]
    for part in given["parts"]:
        print(f"{part} ...", file=sys.stderr, flush=True)
        match part:
            case "soak":
                # A small cache is full soon, and with it everything that is kept about blocks.
                async with _server("--num-gpu-blocks-override", "1024") as place:
                    found, samples, moments = await _soak(
                        place, given["minutes"], given["clients"], given["kill_every"]
                    )
                    rows += found
            case "overload":
                async with _server() as place:
                    rows += await parts.overload(place, given["overload_seconds"])
            case "kills":
                async with _server() as place:
                    rows += await parts.kills(place, given["kills"])
            case "disconnects":
                async with _server() as place:
                    rows += await parts.disconnects(place, given["disconnects"])
            case "slow-readers":
                count = given["slow_readers"]
                async with _server("--max-num-seqs", str(max(16, count)), "--max-num-queued-reqs", "512") as place:
                    rows += await parts.slow_readers(place, count)
            case "head-of-line":
                for flags in ((), ("--target-itl-ms", f"{given['target_itl_ms']:g}")):
                    async with _server(*flags) as place:
                        found = await parts.head_of_line(place, 1500, 5)
                        note = " ".join(flags) or "no target"
                        rows += [msgspec.structs.replace(row, what=f"{note}: {row.what}") for row in found]
            case "fairness":
                rows += await _fairness()
    busy.append(os.getloadavg()[0])
    load = f"load average {busy[0]:.1f} before, {busy[1]:.1f} after, on {os.cpu_count()} cores"
    command = "quire bench soak " + " ".join(sys.argv[sys.argv.index("soak") + 1 :] if "soak" in sys.argv else ())
    return Report(
        machine=platform.platform(), command=command.strip(), busy=load, rows=rows, samples=samples, kills=moments
    )


@contextlib.asynccontextmanager
async def _server(*flags: str, key: str | None = None) -> AsyncIterator[Place]:
    """A server with the starter model on free ports, ended when the block is left."""
    port, health = _free_port(), _free_port()
    words = [sys.executable, "-m", "quire.clients.cli", "serve", "--port", str(port), "--health-port", str(health)]
    if "--max-num-seqs" not in flags:
        words += ["--max-num-seqs", "16", "--max-num-queued-reqs", str(_QUEUE)]
    command = " ".join(["PYTHONSAFEPATH=1", *words, "--disable-log-stats", *flags])
    url = f"http://127.0.0.1:{port}"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with StartedServer("quire", command) as server:
        async with _session(headers) as http:
            await _ready(server, http, url)
            number = int(flags[flags.index("--max-num-seqs") + 1]) if "--max-num-seqs" in flags else 16
            yield Place(http, url, f"http://127.0.0.1:{health}", server.pid, number)


def _session(headers: dict[str, str] | None = None) -> aiohttp.ClientSession:
    """Without limits of its own."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)


async def _ready(server: StartedServer, http: aiohttp.ClientSession, url: str) -> None:
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(url + "/ready") as response:
                if response.status == 200:
                    return
        if holding(server.pid) is None:
            await server.wait_ready(url)  # tells why it ended
        await asyncio.sleep(0.1)


async def _soak(
    place: Place, minutes: float, clients: int, kill_every: float
) -> tuple[list[Row], list[Sample], list[float]]:
    """G1, G2, G4: the mix, bursts of twice the clients, and in the second half a kill of the engine now and then."""
    async with _session() as http:
        await parts.closed_loop(5.0, clients, lambda rng: mixed(http, place.url, rng))
    await leftovers(place.http, place.url)
    tally = Tally()
    watch = Watch(place.pid, tally)
    baseline = watch.look()
    watcher = asyncio.create_task(watch.run())
    http = _session()
    began, seconds, kills = time.monotonic(), 60 * minutes, list[float]()
    outcomes: list[Outcome] = []

    async def one(rng: random.Random) -> Outcome:
        outcome = await mixed(http, place.url, rng)
        tally.ended += 1
        tally.finished += outcome.kind == "good" and outcome.end == "finished"
        if outcome.end in ("refused", "failed"):
            await asyncio.sleep(rng.uniform(0.1, 0.4))
        return outcome

    async def bursts() -> None:
        while True:
            await asyncio.sleep(BURST_EVERY)
            outcomes.extend(await parts.closed_loop(BURST_SECONDS, 2 * (place.max_num_seqs + _QUEUE), one))

    async def faults() -> None:
        await asyncio.sleep(seconds / 2)
        finished = -1
        while time.monotonic() < began + seconds - kill_every / 2:
            # An engine that has not answered yet is given the time to.
            if (pid := engine_pid(place.pid)) is not None and tally.finished > finished:
                os.kill(pid, signal.SIGKILL)
                kills.append(time.monotonic() - began)
                finished = tally.finished
            await asyncio.sleep(kill_every)

    helpers = [asyncio.create_task(bursts()), asyncio.create_task(faults())]
    outcomes += await parts.closed_loop(seconds, clients, one)
    for helper in helpers:
        await parts.settle(helper)
    # Connections that the clients keep open are no leak of the server's.
    await http.close()
    left = await leftovers(place.http, place.url)
    await asyncio.sleep(2)
    last = watch.look()
    await parts.settle(watcher)
    return _soak_rows(outcomes, watch.samples, (baseline, last), left, kills, seconds), watch.samples, kills


def _soak_rows(
    outcomes: list[Outcome],
    samples: list[Sample],
    ends: tuple[Sample | None, Sample | None],
    left: dict[str, float],
    kills: list[float],
    seconds: float,
) -> list[Row]:
    counts = Counter(f"{outcome.kind} {outcome.end}" for outcome in outcomes)
    silent = {name: number for name, number in counts.items() if name.endswith((" lost", " wrong"))}
    quiet = [sample for sample in samples if WARM_UP_SHARE * seconds / 2 < sample.at < seconds / 2]
    later = [sample for sample in samples if sample.at > WARM_UP_SHARE * seconds / 2]
    rows = [
        Row("G1", f"{seconds / 60:.0f} minutes, {len(outcomes):,} requests, {len(kills)} kills of the engine",
            ", ".join(f"{number} {name}" for name, number in sorted(counts.items())), "", None),
        Row("G4", "requests without an end, or with a wrong one", str(sum(silent.values())), "0", not silent),
        Row("G2", "left behind", ", ".join(f"{k} {v:g}" for k, v in left.items() if v) or "nothing", "0",
            not any(left.values())),
    ]  # fmt: skip
    for name, chosen in (("http", later), ("engine", quiet)):
        held = [(float(s.ended), getattr(s, name)) for s in chosen if getattr(s, name) is not None]
        growth = 1e4 * slope([at for at, _ in held], [float(one.memory) for _, one in held])
        span = f"over {held[-1][0] - held[0][0]:,.0f} requests" if held else ""
        rows.append(Row("G2", f"memory of the {name} process a 10,000 requests {span}", parts.memory_text(growth),
                        "<= 1 MiB", growth <= 1 << 20))  # fmt: skip
    first, last = ends
    if first is not None and last is not None:
        for field, slack in (("descriptors", 2), ("threads", 0)):
            before, after = getattr(first.http, field), getattr(last.http, field)
            rows.append(Row("G2", f"{field} of the HTTP process before and after", f"{before} / {after}",
                            f"+-{slack}", abs(after - before) <= slack))  # fmt: skip
    return rows


async def _fairness() -> list[Row]:
    keys = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write(f"light {keys[0]}\nheavy {keys[1]}\n")
        file.flush()
        rows = []
        for flags in (("--scheduling-policy", "fcfs"), (), ("--target-itl-ms", "50")):
            async with _server("--api-key-file", file.name, *flags, key=keys[0]) as place:
                found = await parts.fairness(place, keys, 16.0)
            note = " ".join(flags) or "fair"
            kept = None if "fcfs" in flags else found[0].kept
            rows += [msgspec.structs.replace(row, what=f"{note}: {row.what}", kept=kept) for row in found]
    return rows


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
