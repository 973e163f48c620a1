"""The first forward passes: they touch every weight, and on the CPU they tell how many tokens one step may compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from quire.engine.cache_groups import NULL_BLOCK, CacheGroup, has_window
from quire.engine.core import Runner
from quire.engine.messages import pack_ids
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Step

STEP_SECONDS = 0.25
"""What the token budget of one step is worth: how long a running stream may wait for others' prompts."""
MIN_TOKENS = 32
MAX_TOKENS = 8192
SMALL_WEIGHTS = 256 << 20
"""Bytes of weights up to which a model may be too small for several threads."""
WORTH_THREADS = 1.25
_LONG_ENOUGH = 0.025
"""A prompt that took this many seconds tells the rate."""


class WarmRunner(Runner, Protocol):
    """A runner that says which cache groups it has."""

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """A `RowWork` names blocks for each of them."""


def find_token_budget(
    runner: WarmRunner,
    *,
    num_tokens_that_fit: int,
    block_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Tokens that take about `STEP_SECONDS`, a multiple of `MIN_TOKENS`, at most `MAX_TOKENS`.

    Prompts of doubling length are computed into the first blocks, whose content nobody has yet, until one takes long
    enough to tell. The better of two passes counts: the first may pay for pages and buffers, or meet another process.
    """
    num_tokens = min(MIN_TOKENS, num_tokens_that_fit)
    while True:
        seconds = _time_prompt(runner, num_tokens, block_size, clock)
        if seconds >= _LONG_ENOUGH or num_tokens * 2 > min(num_tokens_that_fit, MAX_TOKENS):
            break
        num_tokens *= 2
    budget = int(num_tokens * STEP_SECONDS / max(seconds, 1e-6))
    return max(MIN_TOKENS, min(MAX_TOKENS, budget) // MIN_TOKENS * MIN_TOKENS)


def choose_threads(
    runner: WarmRunner,
    most: int,
    set_threads: Callable[[int], None],
    *,
    num_tokens_that_fit: int,
    block_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """One thread, unless `most` compute a short prompt `WORTH_THREADS` times as fast; the choice is left set.

    For small models only: what their threads wait for each other is more than they share, and the cores are left to the
    HTTP process.
    """
    num_tokens = min(MIN_TOKENS, num_tokens_that_fit)
    seconds = {}
    for threads in (1, most):
        set_threads(threads)
        seconds[threads] = _time_prompt(runner, num_tokens, block_size, clock)
    chosen = most if seconds[1] > WORTH_THREADS * seconds[most] else 1
    set_threads(chosen)
    return chosen


def _time_prompt(runner: WarmRunner, num_tokens: int, block_size: int, clock: Callable[[], float]) -> float:
    """Seconds of the better of two passes."""
    times = []
    for _ in range(2):
        start = clock()
        run_prompt(runner, num_tokens, block_size)
        times.append(clock() - start)
    return min(times)


def run_prompt(runner: WarmRunner, num_tokens: int, block_size: int) -> None:
    """Compute one made-up prompt in row 0 and sample from it; raises RuntimeError when that fails."""
    params = SamplingParams(temperature=1.0, seed=0)
    new_row = NewRow(0, "warm-up", 0, params, pack_ids([0] * num_tokens), num_tokens)
    # One pass reads in each layer what that layer has just written, so all cache groups may use the same blocks.
    first = NULL_BLOCK + 1 if has_window(runner.groups) else 0
    block_ids = tuple(range(first, first - (-num_tokens // block_size)))
    work = RowWork(0, 0, num_tokens, (block_ids,) * len(runner.groups), (0,))
    for step in (Step(0, (work,), (new_row,)), Step(0, (), released_rows=(0,))):
        runner.forward(step)
        runner.sample(step, None)
        for row in runner.collect().rows:
            if row.failure is not None and row.failure.code != "model_numerics":
                raise RuntimeError(f"the warm-up failed: {row.failure.message}")
