"""The ledger benchmark believes no ledger that does not add up."""

from __future__ import annotations

from typing import Any

import pytest

from quire.benchmarks import ledger


def told(client_ms: float, **changes: float) -> ledger.Told:
    timings: dict[str, Any] = dict.fromkeys(ledger.PARTS, 1.0) | {"total_ms": 8.0, "delayed_by": []} | changes
    return ledger.Told(timings, client_ms)


@pytest.mark.parametrize(
    ("one", "adds_up"),
    [
        (told(9.0), True),
        (told(9.0, total_ms=8.004), True),
        (told(9.0, queue_ms=1.1), False),
        (told(7.9), False),
    ],
)
def test_a_ledger_adds_up_and_is_no_longer_than_its_clients_time(one: ledger.Told, adds_up: bool) -> None:
    text, verdict = ledger.report([told(10.0), one], concurrency=2)
    assert verdict is adds_up
    assert "2 requests, 2 at a time" in text


def test_requests_are_a_mix_that_a_seed_repeats() -> None:
    made = ledger.bodies(32, max_tokens=8, seed=1)
    assert made == ledger.bodies(32, max_tokens=8, seed=1)
    assert {body["stream"] for body in made} == {True, False}
    assert {body["n"] for body in made} == {1, 2}
    assert all(body["quire"] == {"timings": True} for body in made)
    assert sum("stop" in body for body in made) == 7
