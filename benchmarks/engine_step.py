"""Host time of one engine step with a model that costs nothing: what the engine itself adds to every token.

`python -m quire.benchmarks.engine_step` fills the engine with sequences that decode, and times `EngineCore.step`:
scheduling, the Step, a runner that answers at once, applying, and the message of all rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import deque
from time import perf_counter

from quire.engine.block_pool import BlockPool
from quire.engine.cache_report import ExplainingIndex
from quire.engine.core import EngineCore
from quire.engine.messages import Add, Explain, pack_ids
from quire.engine.sampling_params import SamplingParams
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.step import Sampled, SampledRow, Step

BLOCK_SIZE = 16
PROMPT_TOKENS = 128


class FreeRunner:
    """Answers every sampling row with the same token, at once."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()

    def forward(self, step: Step) -> None:
        """Nothing to compute."""

    def sample(self, step: Step, masks: None) -> None:
        """Remember whom to answer."""
        self._steps.append(step)

    def collect(self) -> Sampled:
        """Token 7 for everyone."""
        step = self._steps.popleft()
        return Sampled(step.step_id, tuple([SampledRow(row, (7,)) for work in step.work for row in work.samples]))


def measure(num_sequences: int, num_steps: int, depth: int, explain: bool = False) -> list[float]:
    """Seconds of each of `num_steps` steps in which `num_sequences` sequences decode one token each.

    With `explain` every request asks for its ledger.
    """
    max_model_len = PROMPT_TOKENS + num_steps + 64
    num_blocks = num_sequences * (max_model_len // BLOCK_SIZE + 2) * 2
    pool = BlockPool(num_blocks, BLOCK_SIZE, prefix_index=ExplainingIndex(b"benchmark"))
    config = SchedulerConfig(
        max_num_seqs=num_sequences, max_num_batched_tokens=num_sequences * PROMPT_TOKENS, max_model_len=max_model_len
    )
    core = EngineCore(Scheduler(config, pool), FreeRunner(), depth=depth)
    params = SamplingParams(max_tokens=max_model_len, stop_token_ids=(2,))
    for index in range(num_sequences):
        prompt = pack_ids([index] * PROMPT_TOKENS)
        now = perf_counter()
        asked = Explain(began=now) if explain else None
        core.add(Add(request_id=f"{index:032x}", prompt_token_ids=prompt, params=params, explain=asked), now)
    while (outputs := core.step(perf_counter)) is None or len(outputs.rows) < num_sequences:
        pass
    seconds = []
    gc.freeze()
    for _ in range(num_steps):
        start = perf_counter()
        core.step(perf_counter)
        seconds.append(perf_counter() - start)
    if core.statistics().num_running != num_sequences:
        raise RuntimeError(f"expected {num_sequences} running sequences, found {core.statistics().num_running}")
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Print median, 90th and 99th percentile in milliseconds."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.engine_step", description=__doc__)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--explain", action="store_true", help="every request asks where its time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    milliseconds = sorted(
        1000 * second for second in measure(options.sequences, options.steps, options.depth, options.explain)
    )
    figures = {f"p{percent}_ms": milliseconds[len(milliseconds) * percent // 100] for percent in (50, 90, 99)}
    if options.json:
        facts = {"sequences": options.sequences, "steps": options.steps, "depth": options.depth}
        sys.stdout.write(json.dumps(facts | figures) + "\n")
        return 0
    sys.stdout.write(f"engine step, {options.sequences} sequences, depth {options.depth}, {options.steps} steps\n")
    for name, figure in (("median", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms")):
        sys.stdout.write(f"  {name:<8}{figures[figure]:8.3f} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
