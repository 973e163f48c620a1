"""Requests that must be answered equally whatever happens around them, and how answers are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from support.bare_engine import Prompts, Results

from quire.engine.faults import Faults
from quire.engine.messages import TokenLogprobs
from quire.engine.sampling_params import SamplingParams

TOLERANCE = 1e-5
GREEDY = SamplingParams(temperature=0, max_tokens=8, logprobs=2)
SEEDED = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=11, max_tokens=8, logprobs=2)


def ids(seed: int, count: int, vocab_size: int = 600) -> list[int]:
    """A made-up prompt."""
    chooser = random.Random(seed)
    return [chooser.randrange(5, vocab_size) for _ in range(count)]


def subjects() -> Prompts:
    """The requests that every variant runs: short and long, greedy and sampled, with and without extras."""
    return {
        "subject-short": (ids(1, 3), GREEDY),
        "subject-block": (ids(2, 16), GREEDY),
        "subject-long": (ids(3, 75), GREEDY),
        "subject-seeded": (ids(4, 33), SEEDED),
        "subject-penalised": (ids(5, 20), replace_params(SEEDED, repetition_penalty=1.3, presence_penalty=0.5)),
        "subject-scored": (ids(6, 40), replace_params(GREEDY, prompt_logprobs=1)),
    }


def neighbours() -> Prompts:
    """Requests that only stand around."""
    return {f"other-{i}": (ids(100 + i, 1 + 9 * i), replace_params(SEEDED, max_tokens=4 + i)) for i in range(6)}


def replace_params(params: SamplingParams, **fields: object) -> SamplingParams:
    return SamplingParams(**({name: getattr(params, name) for name in params.__struct_fields__} | fields))


def assert_same(found: Results, expected: Results) -> None:
    """Equal tokens, log probabilities within the tolerance, for every key of `expected`."""
    for key, wanted in expected.items():
        result = found[key]
        assert result.tokens == wanted.tokens, key
        assert result.finish_reason == wanted.finish_reason, key
        for mine, theirs in (
            (result.logprobs, wanted.logprobs),
            (result.prompt_logprobs, wanted.prompt_logprobs),
        ):
            assert [entry and entry.token_id for entry in mine] == [entry and entry.token_id for entry in theirs], key
            assert numbers(mine) == pytest.approx(numbers(theirs), abs=TOLERANCE), key


def numbers(entries: Sequence[TokenLogprobs | None]) -> list[float]:
    return [value for entry in entries if entry for value in (entry.logprob, *entry.top_logprobs)]


class PreemptOften(Faults):
    """Preempts somebody in every seventh step."""

    def __init__(self) -> None:
        self._calls = 0

    def rarely(self, name: str) -> bool:
        self._calls += name == "scheduler.preempt"
        return name == "scheduler.preempt" and self._calls % 7 == 0
