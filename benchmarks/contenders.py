"""Who is measured without a server, and how: each a command that prints its rates, run in a process of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from quire.benchmarks.engine_rates import Rates
from quire.clients.terminal import CommandFailed

TOKENS_IN, TOKENS_OUT, BATCH = 256, 48, 8
QUIRE = {"quire bf16": None, "quire int8": "int8", "quire int8-w8a8": "int8-w8a8", "quire int4": "int4"}
"""Name -> --quantization."""
LLAMA = {"llama.cpp BF16": "BF16", "llama.cpp Q8_0": "Q8_0", "llama.cpp Q4_0": "Q4_0"}
"""Name -> type of the GGUF file."""
TRANSFORMERS = {"transformers bf16": "bfloat16", "transformers fp32": "float32"}
"""Name -> dtype."""
LONGEST = 300.0
"""Seconds that one run may take."""
_LAST_WORDS = 400


@dataclass(frozen=True)
class Contender:
    """A command, and how its standard output is read."""

    name: str
    command: tuple[str, ...]
    read: Callable[[str], Rates]
    once: bool = False
    """Whether it is so slow, and so far from a goal, that one round is enough."""

    def run(self) -> Rates:
        """Raises CommandFailed with what it said, or when it takes too long."""
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=LONGEST)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandFailed(f"{self.name}: {error}") from error
        try:
            if done.returncode:
                raise ValueError(f"exit code {done.returncode}")
            return self.read(done.stdout)
        except ValueError as error:
            said = (done.stderr or done.stdout).strip()[-_LAST_WORDS:]
            raise CommandFailed(f"{self.name}: {error}: {said}") from error


def contenders(model: Path, llama: Path | None, threads: int) -> list[Contender]:
    """Ours and the peers that are there, rivals side by side; `llama` is the folder of llama.cpp's programs."""
    ours = [Contender(name, _quire(model, quantization), read_rates) for name, quantization in QUIRE.items()]
    theirs = [] if llama is None else [
        Contender(name, _batched_bench(llama, model, kind, threads), read_batched_bench)
        for name, kind in LLAMA.items()
    ]  # fmt: skip
    others = [
        Contender(name, _transformers(model, dtype, threads), read_rates, once=True)
        for name, dtype in TRANSFORMERS.items()
    ]
    pairs = itertools.zip_longest(ours, theirs)
    return [contender for pair in pairs for contender in pair if contender is not None] + others


def _quire(model: Path, quantization: str | None) -> tuple[str, ...]:
    extra = () if quantization is None else ("--quantization", quantization)
    return (sys.executable, "-m", "quire.benchmarks.engine_rates", str(model), "--dtype", "bfloat16", *extra,
            "--input-len", str(TOKENS_IN), "--output-len", str(TOKENS_OUT), "--batch", str(BATCH))  # fmt: skip


def _batched_bench(llama: Path, model: Path, kind: str, threads: int) -> tuple[str, ...]:
    return (str(llama / "llama-batched-bench"), "-m", str(model / f"model-{kind}.gguf"), "-c", "4096", "-b", "2048",
            "-ub", "512", "-npp", str(TOKENS_IN), "-ntg", str(TOKENS_OUT), "-npl", f"1,{BATCH}", "-t", str(threads),
            "--output-format", "jsonl")  # fmt: skip


def _transformers(model: Path, dtype: str, threads: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "quire.benchmarks.transformers_rates", str(model), "--dtype", dtype, "--threads",
            str(threads), "--input-len", str(TOKENS_IN), "--output-len", "6", "--batch", str(BATCH))  # fmt: skip


def versions(llama: Path | None) -> dict[str, str]:
    """Of the peers."""
    found = {"transformers": version("transformers"), "torch": version("torch")}
    if llama is not None:
        said = subprocess.run([llama / "llama-batched-bench", "--version"], capture_output=True, text=True)
        found["llama.cpp"] = ((said.stderr + said.stdout).strip().splitlines() or ["unknown"])[0]
    return found


def read_rates(output: str) -> Rates:
    """The last line. Raises ValueError."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError("it printed no rates")
    return msgspec.json.decode(lines[-1], type=Rates)


def read_batched_bench(output: str) -> Rates:
    """The JSON lines of llama-batched-bench: one for a single sequence, one for the batch. Raises ValueError."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    by_batch = {line["pl"]: line for line in lines}
    if not {1, BATCH} <= by_batch.keys():
        raise ValueError(f"expected lines for 1 and {BATCH} sequences, found {sorted(by_batch)}")
    alone, batch = by_batch[1], by_batch[BATCH]
    return Rates(alone["speed_pp"], alone["speed_tg"], BATCH, batch["speed_tg"])
