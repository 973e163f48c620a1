"""The core in the simulator: 50,000 steps at the depths that seeds choose, replays, shrinking, allocation sweeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quire.simulator.coverage import EXPECTED, Coverage
from quire.simulator.lives import hunt, live, live_with, sweep
from quire.simulator.mutants import MUTANTS
from quire.simulator.plan import draw
from quire.simulator.report import life_story
from quire.simulator.shrink import ddmin, shrink

TRACES = """
from quire.simulator.lives import live
from quire.simulator.plan import draw
print(*[live(draw(seed), 300).trace for seed in (3, 1005)])
"""


def test_fifty_thousand_steps_without_a_violation() -> None:
    """G7, the part of the ordinary tests (the other half: test_simulator_depths.py)."""
    coverage, num_steps, seed = Coverage(), 0, 0
    while num_steps < 50_000:
        life = live(draw(seed))
        assert life.violation is None, life_story(life, 500)
        coverage.update(life.coverage)
        num_steps, seed = num_steps + life.num_steps, seed + 1
    assert coverage.missing(3) == {}, "a simulator that tests nothing finds nothing"


def test_a_seed_lives_the_same_life_in_any_process() -> None:
    """I18, whatever the hashes of strings are."""
    here = [live(draw(seed), 300).trace for seed in (3, 1005)]
    assert here[0] != here[1]
    assert live(draw(3), 300).trace == here[0]
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-P", "-c", TRACES],
            capture_output=True, text=True, check=True, timeout=120, env={"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert [int(word) for word in run.stdout.split()] == here


def test_recorded_events_give_the_same_life_again() -> None:
    life = live(draw(5), 200)
    assert live(life.plan, 200, life.events).trace == life.trace


@pytest.mark.parametrize("seed", range(8))
def test_every_allocation_may_fail_once(seed: int) -> None:
    """G18, 8 of 20 traces; `make simulate` runs all."""
    swept = sweep(seed, 25)
    assert swept.violations == ()
    assert swept.num_lives >= 4


def test_a_violation_is_shrunk_and_told() -> None:
    mutant = MUTANTS["copies-are-not-made"]
    life = hunt(mutant, range(10), 400)
    assert life is not None
    assert life.violation is not None
    with mutant.planted():
        small = shrink(life, 400)
    assert small.violation is not None
    assert small.violation.invariant == life.violation.invariant
    assert len(small.events) <= 3
    story = life_story(life, 400)
    assert f"quire simulate --seed {life.plan.seed} --until 400" in story
    assert str(life.violation) in story


def test_a_mutant_is_gone_when_its_life_is_over() -> None:
    mutant = MUTANTS["skip-one-decref"]
    assert live_with(mutant, 0, 100).violation is not None
    assert live(draw(0), 100).violation is None


@pytest.mark.parametrize(("wanted", "trials"), [({3}, 40), ({3, 17}, 60), (set(range(20)), 500), (set(), 10)])
def test_ddmin_finds_the_items_that_matter(wanted: set[int], trials: int) -> None:
    tried = 0

    def fails(items: list[int]) -> bool:
        nonlocal tried
        tried += 1
        return wanted <= set(items)

    assert set(ddmin(range(20), fails)) == wanted
    assert tried <= trials


def test_everything_that_must_happen_has_a_name_once() -> None:
    assert len(EXPECTED) > 70
    coverage = Coverage()
    assert set(coverage.missing(1)) == EXPECTED
