"""Counters of the scheduler since its start, and the statistics made of them."""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine.block_pool import BlockPool
from quire.engine.messages import Statistics
from quire.engine.roster import Roster
from quire.engine.sequence import Sequence


@dataclass(slots=True)
class Counters:
    """The fields of `Statistics` of the same names."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    step_tokens: int = 0

    def admit(self, sequence: Sequence, num_looked_up_tokens: int, now: float) -> None:
        """`sequence` begins behind its cached tokens; what concerns its request is counted at the first admission."""
        group = sequence.group
        self.prefix_cache_queries += num_looked_up_tokens
        self.prefix_cache_hits += sequence.num_computed_tokens
        if group.first_scheduled_at is None:
            group.first_scheduled_at = now
            group.num_cached_tokens = sequence.num_computed_tokens
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.num_cached_tokens += group.num_cached_tokens

    def statistics(self, roster: Roster, pool: BlockPool) -> Statistics:
        """Gauges of this moment, counters since the start."""
        return Statistics(
            num_running=len(roster.running),
            num_waiting=len(roster.queue),
            num_blocks=pool.num_usable,
            num_used_blocks=pool.num_used,
            num_cached_blocks=pool.num_cached,
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generation_tokens=self.num_generation_tokens,
            num_preemptions=self.num_preemptions,
            prefix_cache_queries=self.prefix_cache_queries,
            prefix_cache_hits=self.prefix_cache_hits,
            step_tokens=self.step_tokens,
        )
