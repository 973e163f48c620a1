"""What `quire plan` predicts against what the engine does: `python -m quire.benchmarks.prediction [MODEL]`.

Steps of the real engine in this process, without HTTP: prompts of several lengths, and decoding at several batch sizes
and contexts. The shares of the peak in `quire.engine.devices` were set by it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.devices import this_machine
from quire.engine.hardware import available_memory, count_cores
from quire.engine.messages import Add, pack_ids
from quire.engine.model_folder import STARTER
from quire.engine.models.architectures import read_model_config
from quire.engine.precision import choose_precision
from quire.engine.process import build_engine
from quire.engine.roofline import Roofline
from quire.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Point:
    """One step: `batch` sequences that decode at `context` tokens, or (batch 0) a prompt of `context` tokens."""

    batch: int
    context: int
    predicted_ms: float
    measured_ms: float


def compare(
    folder: Path,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    num_steps: int,
    threads: int,
    clock: Callable[[], float] = perf_counter,
) -> list[Point]:
    """Prediction and the median of `num_steps` steps for each batch and context, and for each context as a prompt."""
    longest = max(contexts) + num_steps + max(batches) + 8
    config = EngineConfig(
        model=str(folder),
        model_name=folder.name,
        threads=threads,
        max_model_len=longest,
        max_num_seqs=max(batches),
        max_num_batched_tokens=max(contexts) * max(batches),
        enable_prefix_caching=False,
    )
    core, _ = build_engine(config)
    model, device = read_model_config(folder, folder.name), this_machine(available_memory(), threads)
    roofline = Roofline(model, choose_precision(model, config, "cpu"), device)
    points = []
    for context in contexts:
        seconds = min(_decode(core, 1, context, 0, clock)[0] for _ in range(2))
        points.append(Point(0, context, 1e3 * roofline.prefill_seconds(context, context), 1e3 * seconds))
        for batch in batches:
            seconds = median(_decode(core, batch, context, num_steps, clock)[1:])
            points.append(Point(batch, context, 1e3 * roofline.decode_seconds(batch, context), 1e3 * seconds))
    return points


def _decode(core: EngineCore, batch: int, context: int, num_steps: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of the step that ends the last prompt, and of each step in which all of `batch` sequences decode."""
    params = SamplingParams(temperature=0, max_tokens=num_steps + batch + 1, ignore_eos=True)
    for index in range(batch):
        prompt = pack_ids([5 + (index + position) % 64 for position in range(context)])
        core.add(Add(f"{index:032x}", prompt, params), perf_counter())
    seconds = []
    while core.has_work():
        start = clock()
        outputs = core.step(perf_counter)
        taken = clock() - start
        if outputs is not None and len(outputs.rows) == batch:
            seconds.append(taken)
    return seconds[: num_steps + 1]


def main(argv: list[str] | None = None) -> int:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.prediction", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=STARTER)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    points = compare(
        options.model,
        batches=options.batches,
        contexts=options.contexts,
        num_steps=options.steps,
        threads=options.threads,
    )
    if options.json:
        print(json.dumps({"threads": options.threads, "points": [asdict(point) for point in points]}, indent=1))
        return 0
    for point in points:
        what = f"{point.batch} decoding at {point.context}" if point.batch else f"prompt of {point.context}"
        ratio = point.measured_ms / point.predicted_ms
        print(
            f"{what:>24}  predicted {point.predicted_ms:8.2f} ms  measured {point.measured_ms:8.2f} ms  {ratio:5.2f}x"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
