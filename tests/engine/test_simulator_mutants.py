"""Every mutant of the core is caught by the seed that is recorded for it; the page lists them."""

from __future__ import annotations

import pytest
from support.source_tree import ROOT

from quire.simulator.lives import live_with
from quire.simulator.mutants import MUTANTS
from quire.simulator.recorded import MAX_STEPS, read_kills
from quire.simulator.report import kills_table

KILLS = read_kills()


def test_there_are_enough_mutants_and_each_has_a_seed() -> None:
    """G7: at least 40, all caught."""
    assert len(MUTANTS) >= 40
    assert KILLS.keys() == MUTANTS.keys(), "run: quire simulate --mutants --seeds 60 --record <recorded.json>"
    assert all(kill.step < MAX_STEPS for kill in KILLS.values())


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str) -> None:
    """By its recorded seed, in under 2,000 steps."""
    kill = KILLS[name]
    life = live_with(MUTANTS[name], kill.seed, kill.step + 200)
    assert life.violation is not None
    assert life.num_steps < MAX_STEPS


def test_the_page_lists_them() -> None:
    assert kills_table(KILLS) in (ROOT / "docs" / "simulator.md").read_text()
