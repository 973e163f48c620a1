"""What a seed decides once: the sizes of the engine, the load, and which faults happen how often (a swarm: each seed
switches a random part of them on)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from quire.engine.cache_groups import ONE_GROUP, CacheGroup, has_window
from quire.engine.config import Policy

VOCAB_SIZE = 16
"""Token ids; few, so that stop tokens and stop strings are met."""

GROUPS = (
    ONE_GROUP,
    (CacheGroup(), CacheGroup(window=6)),
    (CacheGroup(window=9),),
    (CacheGroup(window=3), CacheGroup(), CacheGroup(window=11)),
)

BUGGIFY = {
    "scheduler.budget": 0.1,
    "scheduler.preempt": 0.3,
    "scheduler.watermark": 0.2,
    "pool.evict": 0.05,
    "pool.refuse": 0.05,
    "core.apply_early": 0.4,
}
"""Rare branches of the product (`Faults.rarely`), and the highest rate at which a seed takes each."""

STEP_FAULTS = {
    "step.before": 0.01,
    "step.during": 0.01,
    "step.after": 0.01,
    "step.collect": 0.01,
    "step.memory": 0.01,
    "row.numerics": 0.01,
    "row.no_token": 0.01,
}
"""Of the runner, per step or per row: it raises before, in the middle of, and after its writes, or when its result is
fetched; it is out of memory; a row's numbers are none; a row has no token left."""

LINK_FAULTS = {
    "link.slow": 0.1,
    "link.repeat_cancel": 0.5,
    "link.late_cancel": 0.3,
    "link.overtaking_cancel": 0.3,
    "link.lose_cancel": 0.3,
    "link.lose_add": 0.05,
}
"""Per message to the engine."""

WORLD_FAULTS = {
    "engine.crash": 0.004,
    "engine.hang": 0.006,
    "http.stall": 0.01,
    "clock.jump": 0.004,
    "server.drain": 0.003,
}
"""Events from outside, as a share of the arrivals."""

CLIENT_FAULTS = {
    "client.abort": 0.4,
    "client.abort_choice": 0.2,
    "client.stalled": 0.3,
    "client.slow": 0.4,
    "client.vanish": 0.1,
    "client.deadline": 0.3,
    "client.retry": 0.8,
    "client.too_long": 0.05,
    "client.suspect": 0.05,
}
"""Per request."""

RATES = BUGGIFY | STEP_FAULTS | LINK_FAULTS | WORLD_FAULTS | CLIENT_FAULTS
_SHARE = 0.35
"""Of the faults, that a seed switches on, on average."""


@dataclass(frozen=True)
class Plan:
    """A life, before it begins."""

    seed: int
    depth: int
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    budget: int
    threshold: int | None
    policy: Policy
    caching: bool
    hash_bits: int
    groups: tuple[CacheGroup, ...]
    target_itl: float | None
    max_queued: int
    interval: float
    """Mean time between arrivals, in steps of the engine."""
    step_seconds: float
    delay: float
    """Longest time of a message on its way, in steps of the engine."""
    num_families: int
    """Prompts of one family begin alike."""
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def faultless(self) -> bool:
        """Whether nothing goes wrong but what clients do."""
        return not any(name in self.rates for name in (BUGGIFY | STEP_FAULTS | LINK_FAULTS | WORLD_FAULTS))


def draw(seed: int, depth: int | None = None) -> Plan:
    """The plan of a seed; `depth` instead of the seed's own."""
    rng = random.Random(f"plan {seed}")
    groups = rng.choice((ONE_GROUP, ONE_GROUP, ONE_GROUP, *GROUPS))
    block_size = rng.choice((1, 2, 4, 4, 8))
    max_model_len = rng.choice((12, 24, 40))
    smallest = len(groups) * -(-max_model_len // block_size)
    spare = rng.choice((0, -(-smallest // 20), rng.randint(0, 24), 2 * smallest))
    drawn_depth = rng.choice((1, 1, 2, 4))
    swarm = rng.random() < 0.9
    rates = {name: rng.uniform(0.1, 1.0) * rate for name, rate in RATES.items() if rng.random() < _SHARE and swarm}
    rates |= {name: rng.uniform(0.1, 1.0) * rate for name, rate in CLIENT_FAULTS.items() if rng.random() < _SHARE}
    troubled = rng.random() < 0.5
    rates |= {name: 10 * rate for name, rate in rates.items() if name in WORLD_FAULTS and troubled}
    return Plan(
        seed=seed,
        depth=depth or drawn_depth,
        block_size=block_size,
        num_blocks=has_window(groups) + smallest + spare,
        max_model_len=max_model_len,
        max_num_seqs=rng.choice((1, 2, 3, 6, 8)),
        budget=rng.choice((1, 4, 8, 16, 48)),
        threshold=rng.choice((None, None, 3, 8)),
        policy=rng.choice(("fcfs", "fcfs", "priority", "fair", "fair")),
        caching=rng.random() < 0.85,
        hash_bits=rng.choice((128, 128, 6)),
        groups=groups,
        target_itl=rng.choice((None, None, 0.02, 1.0)),
        max_queued=rng.choice((2, 6, 20)),
        interval=rng.choice((3.0, 6.0, 12.0, 24.0)),
        step_seconds=rng.choice((0.01, 0.1, 0.7)),
        delay=rng.choice((0.0, 0.5, 3.0)),
        num_families=rng.choice((1, 3, 8)),
        rates=rates,
    )
