"""`make bench-gpu`: the goals on a GPU, K1 to K7 and E1 to E12, in one run of less than eight minutes.

`python -m quire.benchmarks.gpu_goals` measures the kernels, then the engine with random weights in the shapes of Llama
3.1 8B and Qwen3 0.6B, writes JSON under benchmarks/results/ with the device's name, and prints each row.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from quire.benchmarks import gpu_kernels
from quire.benchmarks.goal_rows import Goal, table
from quire.benchmarks.gpu_engine import GpuEngine
from quire.benchmarks.gpu_rows import GpuLimits, GpuMeasured, Prefix, gpu_goals
from quire.benchmarks.shapes import write_shape
from quire.benchmarks.studies.record import record
from quire.clients.terminal import USAGE, CommandFailed, Parser

RESULTS = Path("benchmarks/results")
CONTEXT, STEPS = 1024, 64
LENGTHS = (100, 1024)
"""Of the offline run's prompts and answers, uniform."""
NUM_OFFLINE = 256
PREFIX_TOKENS = 4096


class Result(msgspec.Struct, frozen=True):
    """One run."""

    kernels: gpu_kernels.Result
    engine: GpuMeasured
    goals: list[Goal]


def main(words: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    words = sys.argv[1:] if words is None else words
    options = _parser().parse(words)
    if not torch.cuda.is_available():
        raise CommandFailed(f"torch {torch.__version__} finds no CUDA device on this machine", USAGE)
    served = None if options.served is None else served_rate(options.served)
    kernels = gpu_kernels.measure()
    limits = GpuLimits(kernels.copy_gb_per_s, kernels.bfloat16_tflop_per_s)
    with tempfile.TemporaryDirectory() as folder:
        engine = measure(Path(folder), kernels.device, limits)
    engine = msgspec.structs.replace(engine, served_tokens_per_second=served)
    result = Result(kernels, engine, rows(kernels, engine))
    print(table(result.goals))
    file = options.output_json or RESULTS / file_name(kernels.device)
    record(shlex.join(["python", "-m", "quire.benchmarks.gpu_goals", *words]), result).save(file)
    print(f"wrote {file}")
    return 0


def rows(kernels: gpu_kernels.Result, engine: GpuMeasured) -> list[Goal]:
    """K, then E."""
    return [*gpu_kernels.goals(kernels), *gpu_goals(engine)]


def file_name(device: str) -> str:
    """gpu_nvidia_h200.json of "NVIDIA H200"."""
    return "gpu_" + re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_") + ".json"


def served_rate(file: Path) -> float:
    """Output tokens a second of what `quire bench serve --save-result` wrote. Raises CommandFailed."""
    try:
        return float(json.loads(file.read_text())["output_throughput"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"--served {file}: {error!r}", USAGE) from error


def measure(
    folder: Path, device: str, limits: GpuLimits, make: Callable[..., GpuEngine] = GpuEngine, **small: Any
) -> GpuMeasured:
    """The engine in both shapes, one after the other; `small` replaces sizes."""
    sizes = {"context": CONTEXT, "num_steps": STEPS, "offline": NUM_OFFLINE, "prefix": PREFIX_TOKENS} | small
    context, num_steps = sizes["context"], sizes["num_steps"]
    longest = max(2 * context, sizes["prefix"]) + 2 * num_steps + 512
    decode = []
    large = make("llama-3.1-8b", write_shape("llama-3.1-8b", folder / "large"), max_model_len=longest)
    for batch in (1, 32, 128):
        decode.append(large.decode(limits, batch, context, num_steps))
    chooser = random.Random(0)
    lengths = [(chooser.randint(*LENGTHS), chooser.randint(*LENGTHS)) for _ in range(sizes["offline"])]
    offline = large.offline(limits, lengths)
    del large
    path = write_shape("qwen3-0.6b", folder / "small")
    cached = make("qwen3-0.6b", path, max_model_len=longest)
    for batch in (1, 256):
        decode.append(cached.decode(limits, batch, context, num_steps))
    misses = [cached.first_token(cached.prompt(sizes["prefix"])) for _ in range(5)]
    gain = statistics.median(misses) / statistics.median(_hits(cached, sizes["prefix"]))
    del cached
    plain = make("qwen3-0.6b", path, max_model_len=longest, enable_prefix_caching=False)
    without = [plain.first_token(plain.prompt(sizes["prefix"])) for _ in range(5)]
    cost = statistics.median(misses) / statistics.median(without) - 1
    return GpuMeasured(device, limits, decode, offline, Prefix(cost, gain))


def _hits(engine: GpuEngine, num_tokens: int) -> list[float]:
    """Seconds to the first token of prompts whose first nine tenths are in the cache."""
    shared = engine.prompt(num_tokens * 9 // 10)
    engine.first_token(shared)
    return [engine.first_token([*shared, *engine.prompt(num_tokens - len(shared))]) for _ in range(5)]


def _parser() -> Parser:
    parser = Parser("quire.benchmarks.gpu_goals", "The goals K and E on this machine's GPU.")
    parser.add_argument("--served", type=Path, metavar="FILE", help="of `quire bench serve --save-result`, for E10")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="[benchmarks/results/gpu_DEVICE.json]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
