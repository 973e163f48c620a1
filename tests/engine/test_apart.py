"""Suspects are computed alone until they are past the place, at the cost of every second step at most (F07)."""

from __future__ import annotations

import itertools

import pytest
from support.bench import Bench, prompt

from quire.engine.core import Runner
from quire.engine.step import Step


def names(bench: Bench) -> list[set[str]]:
    """The requests of each step."""
    rows: dict[int, str] = {}
    found = []
    for step in bench.runner.log:
        rows |= {new.row: new.request_id for new in step.new_rows}
        found.append({rows[work.row] for work in step.work})
    return found


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_a_suspect_shares_no_step_until_it_has_its_tokens(depth: int, n: int) -> None:
    bench = Bench(depth=depth, budget=16)
    for number in range(3):
        bench.add(str(number), prompt(9, number), max_tokens=30)
    bench.step()
    bench.add("suspect", prompt(40, 7), max_tokens=12, n=n, alone=5)
    bench.run()
    bench.assert_expected()
    steps = names(bench)
    alone = [index for index, step in enumerate(steps) if step == {"suspect"}]
    shared = [index for index, step in enumerate(steps) if "suspect" in step and len(step) > 1]
    # Forty tokens of prompt in chunks of sixteen, then one token a step.
    assert len(alone) == 3 + 4
    assert len(shared) == 12 - 5
    assert max(alone) < min(shared)
    assert all(later - earlier == 2 for earlier, later in itertools.pairwise(alone)), "not every second step"


def test_two_suspects_are_alone_from_each_other() -> None:
    bench = Bench()
    for name in ("a", "b"):
        bench.add(name, prompt(5, ord(name)), max_tokens=6, alone=6)
    bench.add("c", prompt(5, 3), max_tokens=20)
    bench.run()
    bench.assert_expected()
    assert all(len(step) == 1 for step in names(bench))


@pytest.mark.parametrize("depth", [2, 4])
def test_no_step_is_in_flight_beside_a_suspects(depth: int) -> None:
    bench = Bench(depth=depth)
    in_flight: list[set[str]] = []
    forward = bench.runner.forward

    def watching(step: Step) -> None:
        forward(step)
        in_flight.append({s.group.request_id for flight in bench.scheduler.flights for s, _, _ in flight.works})

    runner: Runner = bench.runner
    runner.forward = watching  # type: ignore[method-assign]
    bench.add("suspect", prompt(5, 1), max_tokens=8, alone=8)
    bench.add("other", prompt(5, 2), max_tokens=8)
    bench.run()
    bench.assert_expected()
    assert {"suspect"} in in_flight
    assert {"suspect", "other"} not in in_flight


def test_a_suspect_in_a_pool_that_is_too_small() -> None:
    bench = Bench(num_blocks=17, budget=16)
    for number in range(8):
        bench.add(str(number), prompt(4, number), max_tokens=40, alone=40 * (number % 3 == 1))
    bench.run()
    bench.assert_expected()
    assert bench.core.statistics().num_preemptions > 0
