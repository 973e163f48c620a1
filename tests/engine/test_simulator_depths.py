"""The core in the simulator with several steps in flight: 50,000 steps."""

from __future__ import annotations

import pytest

from quire.simulator.lives import live
from quire.simulator.plan import draw
from quire.simulator.report import life_story


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_steps_in_flight(depth: int) -> None:
    """What is written lands 0 to 3 steps later."""
    num_steps, seed = 0, 10_000 * depth
    while num_steps < 16_700:
        life = live(draw(seed, depth))
        assert life.violation is None, life_story(life, 500)
        num_steps, seed = num_steps + life.num_steps, seed + 1
