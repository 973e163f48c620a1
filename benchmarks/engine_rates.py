"""How fast the engine alone is: tokens a second of prefill, of decode alone, and of decode in a batch.

`python -m quire.benchmarks.engine_rates MODEL` steps an engine in this process, with random prompts: no HTTP, no text.
The figures are those of llama.cpp's batched bench: one prompt, its answer, then eight at once.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec

from quire.benchmarks.studies.engine import Engine


class Rates(msgspec.Struct, frozen=True):
    """Tokens a second."""

    prefill: float
    """Of one prompt."""
    decode: float
    """Of one sequence, after its first token."""
    batch: int
    batch_decode: float
    """Of all `batch` sequences together, in the steps in which all of them decode."""


def measure(engine: Engine, chooser: random.Random, *, tokens_in: int, tokens_out: int, batch: int) -> Rates:
    """One prompt alone, then `batch` at once; every prompt is new."""
    times = engine.time_one(engine.prompt(chooser, tokens_in), tokens_out)
    for _ in range(batch):
        engine.add(engine.prompt(chooser, tokens_in), tokens_out)
    seconds, tokens = 0.0, 0
    started: set[str] = set()
    while engine.has_work():
        full = len(started) == batch
        begun = perf_counter()
        rows = engine.step()
        if full and len(rows) == batch:
            seconds, tokens = seconds + perf_counter() - begun, tokens + batch
        started |= {row.request_id for row in rows}
    return Rates(tokens_in / times.first, len(times.gaps) / sum(times.gaps), batch, tokens / seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON object a round."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.engine_rates", description="The engine without a server.")
    parser.add_argument("model", nargs="?", metavar="FOLDER", help="[the starter model]")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(argv)
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("dtype", "quantization", "kv_cache_dtype", "threads")
    }
    # All prompts in one step: where they come one after the other, the first may have ended before the last begins.
    given["max_num_batched_tokens"] = options.batch * options.input_len
    engine = Engine(options.model, max_num_seqs=options.batch, enable_prefix_caching=False, max_model_len=1024, **given)
    chooser = random.Random(0)
    sizes = {"tokens_in": options.input_len, "tokens_out": options.output_len, "batch": options.batch}
    engine.time_one(engine.prompt(chooser, options.input_len), 3)
    for _ in range(options.rounds):
        print(json.dumps(msgspec.to_builtins(measure(engine, chooser, **sizes))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
