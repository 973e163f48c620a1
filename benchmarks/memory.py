"""`quire bench memory`: what the engine process takes beside weights and KV cache, from its start on.

A server is started, asked for some answers at once and stopped; meanwhile the kernel says what memory of the engine
process is its own (anonymous and shared, /proc/PID/smaps_rollup). Weights and cache are what `quire plan` says of them.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from quire.benchmarks.servers import descendants
from quire.benchmarks.studies.record import record
from quire.clients.client import Client
from quire.clients.local_server import LocalServer
from quire.clients.terminal import CommandFailed, Parser
from quire.engine.config import EngineConfig
from quire.engine.hardware import Hardware, count_cores
from quire.engine.model_folder import STARTER
from quire.engine.model_source import read_config
from quire.engine.plan import footprint_of

ALLOWED = 512 << 20
"""Beside weights and cache."""
_REQUESTS, _TOKENS_IN, _TOKENS_OUT = 4, 256, 16
_MIB = 1 << 20
_PAUSE_SECONDS = 0.1
"""Between two looks: the engine waits while the kernel adds its pages up."""


class Result(msgspec.Struct, frozen=True):
    """Bytes."""

    model: str
    weights: int
    kv_cache: int
    ready: int
    """Of the engine process once it accepts requests."""
    served: int
    """After the answers."""
    peak: int
    """The most that was seen."""

    @property
    def beside(self) -> int:
        """Beside weights and cache, after the answers."""
        return self.served - self.weights - self.kv_cache


def own_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("Pss_Anon", sizes.get("Anonymous", 0)) + sizes.get("Pss_Shmem", 0)


def engine_pid() -> int | None:
    """Of the engine process among what this process has started; None while there is none."""
    for pid in descendants(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"quire.engine" in words:
            return pid
    return None


def measure(model: str | None, kv_bytes: int, options: dict[str, str]) -> Result:
    """Start, ask, look. `options`: fields of EngineConfig."""
    folder = STARTER if model is None else Path(model)
    settings = {**options, "kv_cache_memory_bytes": kv_bytes}
    os.environ |= {f"QUIRE_{name.upper()}": str(value) for name, value in settings.items()}
    config = EngineConfig(model=str(folder), model_name=folder.name, **settings)  # type: ignore[arg-type]
    footprint = footprint_of(config, read_config(folder, folder.name), Hardware(count_cores()))
    seen = [0]
    pid: int | None = None

    def look() -> int:
        nonlocal pid
        pid = pid or engine_pid()
        seen.append(own_bytes(pid) if pid is not None else 0)
        time.sleep(_PAUSE_SECONDS)
        return seen[-1]

    def waiting(seconds: float, stage: str) -> None:
        look()

    with LocalServer(model) as server, Client(server.url, timeout=600.0) as client:
        server.wait_ready(waiting)
        ready = look()
        chooser = random.Random(0)
        prompts = [[chooser.randrange(300, 1000) for _ in range(_TOKENS_IN)] for _ in range(_REQUESTS)]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            answers = [pool.submit(client.complete, prompt, max_tokens=_TOKENS_OUT) for prompt in prompts]
            while not all(answer.done() for answer in answers):
                look()
        for answer in answers:
            answer.result()
        served = look()
    if not ready or not served:
        raise CommandFailed("the engine process was not found")
    return Result(folder.name, footprint.weights_bytes, kv_bytes, ready, served, max(seen))


def main(words: list[str]) -> int:
    """Print; exit code 1 when it is more than what is allowed."""
    parser = Parser("bench memory", "What the engine process takes beside weights and KV cache.")
    parser.add_argument("model", nargs="?", help="folder [the starter model]")
    parser.add_argument("--kv-cache-memory-mib", type=int, default=2048, metavar="N", help="[2048]")
    parser.add_argument("--dtype", metavar="NAME", help="[auto]")
    parser.add_argument("--quantization", metavar="NAME", help="[none]")
    parser.add_argument("--kv-cache-dtype", metavar="NAME", help="[auto]")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse(words)
    given = {name: getattr(options, name) for name in ("dtype", "quantization", "kv_cache_dtype")}
    chosen = {name: value for name, value in given.items() if value is not None}
    result = measure(options.model, options.kv_cache_memory_mib * _MIB, chosen)
    for name, size in (
        ("weights", result.weights),
        ("KV cache", result.kv_cache),
        ("engine process, ready", result.ready),
        ("after the answers", result.served),
        ("at most", result.peak),
        ("beside weights and cache", result.beside),
    ):
        print(f"{name:<26}{size / _MIB:9.1f} MiB")
    if options.output_json is not None:
        record(shlex.join(["quire", "bench", "memory", *words]), result).save(options.output_json)
    return int(result.beside > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
