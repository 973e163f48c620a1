"""How fast work drains, whatever the breaks between."""

from __future__ import annotations

import pytest

from quire.engine.drain_rate import DrainRate


def worked(pause: float, *, done: bool = True) -> tuple[DrainRate, float]:
    """Ten pieces of two seconds each, with a pause after each."""
    rate, now = DrainRate(), 1000.0
    for _ in range(10):
        rate.begin(1, now)
        now += 2.0
        rate.end(1, now, done=done)
        now += pause
    return rate, now


@pytest.mark.parametrize("pause", [0.0, 3600.0])
def test_idle_time_does_not_count(pause: float) -> None:
    rate, now = worked(pause)
    assert rate.seconds_for(5, now) == pytest.approx(10.0, rel=0.15)
    rate.begin(5, now)
    assert rate.seconds_for(5, now) == pytest.approx(10.0, rel=0.15)


def test_a_standstill_counts() -> None:
    rate, now = worked(0.0)
    rate.begin(5, now)
    assert rate.seconds_for(5, now + 60.0) > 30.0


def test_what_is_given_up_says_nothing() -> None:
    rate, now = worked(0.0, done=False)
    assert rate.seconds_for(5, now) == 0.0


def test_nobody_waits_for_nothing() -> None:
    rate, now = worked(0.0)
    assert rate.seconds_for(0, now) == rate.seconds_for(-3, now) == 0.0


def test_the_latest_ends_decide() -> None:
    rate, now = worked(0.0)
    for _ in range(200):
        rate.begin(1, now)
        now += 0.1
        rate.end(1, now)
    assert rate.seconds_for(10, now) == pytest.approx(1.0, rel=0.1)
