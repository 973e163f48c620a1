"""What comes from outside, drawn from a seed and then plain values: a life that fails is shrunk by leaving some out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from quire.engine.sampling_params import SamplingParams
from quire.simulator.plan import CLIENT_FAULTS, VOCAB_SIZE, WORLD_FAULTS, Plan

FOREVER = 1e18
_STRINGS = ("ab", "ba", "cad", "ee", "f", "gh")


@dataclass(frozen=True)
class Arrival:
    """A client asks. Times are in seconds, counted from its arrival."""

    at: float
    prompt: tuple[int, ...]
    params: SamplingParams
    key_id: str = ""
    salt: bytes = b""
    priority: int = 0
    explain: bool = False
    deadline: float | None = None
    leaves_after: float = FOREVER
    drops_choice_after: float = FOREVER
    """When the text side has seen enough of choice 0."""
    vanishes: bool = False
    """It leaves, and the engine is not told."""
    reads_every: float = 0.0
    """0: at once; `FOREVER`: never."""
    retries: int = 0
    alone: int = 0
    """Its engine has died before: it is computed alone until it has so many tokens."""
    weight: float = 1.0

    @property
    def kind(self) -> str:
        """For people."""
        return "arrival"


@dataclass(frozen=True)
class Trouble:
    """One of `WORLD_FAULTS`, and for how long."""

    at: float
    kind: str
    seconds: float = 0.0


Event = Arrival | Trouble


def events(plan: Plan) -> Iterator[Event]:
    """The events of a plan, in order, without end."""
    rng = random.Random(f"events {plan.seed}")
    families = [[rng.randrange(VOCAB_SIZE) for _ in range(plan.max_model_len)] for _ in range(plan.num_families)]
    now = 0.0
    while True:
        burst = rng.random() < 0.1
        for _ in range(rng.randint(2, 8) if burst else 1):
            yield _arrival(plan, rng, now, families)
        for kind in WORLD_FAULTS:
            if rng.random() < plan.rates.get(kind, 0.0):
                yield Trouble(now, kind, _duration(plan, rng, kind))
        now += rng.expovariate(1.0) * plan.interval * plan.step_seconds


def _duration(plan: Plan, rng: random.Random, kind: str) -> float:
    if kind == "clock.jump":
        return rng.choice((-86400.0, -5.0, 5.0, 40.0, 86400.0))
    return rng.expovariate(1.0) * 20 * plan.step_seconds


def _arrival(plan: Plan, rng: random.Random, now: float, families: list[list[int]]) -> Arrival:
    on = {name: rng.random() < plan.rates.get(name, 0.0) for name in CLIENT_FAULTS}
    room = plan.max_model_len - 1
    family = rng.choice(families)
    length = min(room, rng.choice((rng.randint(1, room), rng.randint(1, 6), room, plan.block_size * rng.randint(1, 6))))
    cut = rng.randint(0, length)
    prompt = [*family[:cut], *(rng.randrange(VOCAB_SIZE) for _ in range(length - cut))]
    if rng.random() < 0.3:
        prompt = family[:length]
    if on["client.too_long"]:
        prompt += [1] * (plan.max_model_len - length + rng.randint(0, 2))
    key = rng.randrange(4)
    seconds = plan.step_seconds
    return Arrival(
        at=now,
        prompt=tuple(prompt),
        params=_params(plan, rng, length),
        key_id=f"key-{key}",
        salt=bytes([key % 3]) * (key % 3),
        priority=rng.randint(-1, 1),
        explain=rng.random() < 0.2,
        deadline=rng.expovariate(1.0) * 60 * seconds if on["client.deadline"] else None,
        leaves_after=rng.expovariate(1.0) * 30 * seconds if on["client.abort"] or on["client.vanish"] else FOREVER,
        drops_choice_after=rng.expovariate(1.0) * 30 * seconds if on["client.abort_choice"] else FOREVER,
        vanishes=on["client.vanish"],
        reads_every=FOREVER if on["client.stalled"] else rng.uniform(1, 20) * seconds if on["client.slow"] else 0.0,
        retries=rng.randint(1, 3) if on["client.retry"] else 0,
        alone=rng.randint(1, 6) if on["client.suspect"] else 0,
        weight=rng.choice((1.0, 1.0, 2.0)),
    )


def _params(plan: Plan, rng: random.Random, num_prompt_tokens: int) -> SamplingParams:
    scores = rng.random() < 0.1
    room = max(1, plan.max_model_len - num_prompt_tokens)
    return SamplingParams(
        n=rng.choice((1, 1, 1, 1, 2, 3, 5)),
        max_tokens=0 if scores and rng.random() < 0.3 else rng.choice((1, rng.randint(1, room), 2 * room)),
        min_tokens=rng.choice((0, 0, 3)),
        seed=rng.randrange(1 << 16),
        stop_token_ids=rng.choice(((), (1,), (1, 2, 3))),
        stop=rng.choice(((), (), _STRINGS[:2], tuple(rng.sample(_STRINGS, 3)))),
        include_stop_str_in_output=rng.random() < 0.3,
        logprobs=rng.choice((None, None, 0)),
        prompt_logprobs=0 if scores else None,
    )
