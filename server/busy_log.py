"""The line of figures every ten seconds, while there is something to tell."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from quire.engine.messages import Statistics

if TYPE_CHECKING:
    from quire.server.generation import Engine

INTERVAL_SECONDS = 10.0
logger = logging.getLogger("quire.server")


def busy_line(before: Statistics, now: Statistics, seconds: float) -> str | None:
    """The figures of an interval in vLLM's words, or None when nothing ran in it.

    Counters that fell belong to an engine that was restarted: then they count from zero.
    """
    if now.num_steps < before.num_steps:
        before = Statistics()
    if now.num_steps == before.num_steps and not (now.num_running or now.num_waiting):
        return None
    prompt = (now.num_prompt_tokens - before.num_prompt_tokens) / seconds
    generation = (now.num_generation_tokens - before.num_generation_tokens) / seconds
    usage = 100 * now.num_used_blocks / max(1, now.num_blocks)
    hit_rate = 100 * now.prefix_cache_hits / max(1, now.prefix_cache_queries)
    return (
        f"Avg prompt throughput: {prompt:.1f} tokens/s, Avg generation throughput: {generation:.1f} tokens/s, "
        f"Running: {now.num_running} reqs, Waiting: {now.num_waiting} reqs, "
        f"KV cache usage: {usage:.1f}%, Prefix cache hit rate: {hit_rate:.1f}%"
    )


async def log_while_busy(engine: Engine, interval: float = INTERVAL_SECONDS) -> None:
    """Log that line until cancelled."""
    before = Statistics()
    while True:
        await asyncio.sleep(interval)
        now = engine.statistics
        if (line := busy_line(before, now, interval)) is not None:
            logger.info("%s", line)
        before = now
