"""Lives: one seed from its plan to its end, with or without a mutant; many of them; replays; allocation sweeps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from quire.simulator.coverage import Coverage
from quire.simulator.events import Event, events
from quire.simulator.mutants import Mutant
from quire.simulator.plan import CLIENT_FAULTS, Plan, draw
from quire.simulator.shadow import Violation
from quire.simulator.world import World

STEPS = 500
"""Steps of the engine in one life, before it heals."""


@dataclass(frozen=True)
class Life:
    """What came of a life. `events` and `log` are for shrinking and for people."""

    plan: Plan
    num_steps: int
    num_allocations: int
    trace: int
    coverage: Coverage
    violation: Violation | None
    events: tuple[Event, ...]
    log: tuple[tuple[float, str, tuple[object, ...]], ...]


@contextmanager
def quiet() -> Iterator[None]:
    """The core logs each planted fault with its traceback; nobody wants to read that."""
    logger = logging.getLogger("quire.engine")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def live(
    plan: Plan, num_steps: int = STEPS, outside: Iterable[Event] | None = None, failing_allocation: int = 0
) -> Life:
    """One life of at least `num_steps` steps; `outside` takes the place of the plan's own events.

    The allocation of this number, counted from 1, fails; 0: none.
    """
    violation: Violation | None = None
    with quiet():
        world = World(plan, events(plan) if outside is None else outside, failing_allocation)
        try:
            world.run(num_steps)
        except Violation as found:
            violation = found
    return Life(
        plan,
        world.num_steps,
        world.swarm.num_allocations,
        world.trace,
        world.coverage,
        violation,
        tuple(world.consumed),
        tuple(world.timers.log),
    )


def live_with(mutant: Mutant, seed: int, num_steps: int) -> Life:
    """The life of a seed with a fault in the core."""
    with mutant.planted():
        return live(draw(seed), num_steps)


def hunt(mutant: Mutant, seeds: Iterable[int], num_steps: int) -> Life | None:
    """The first life in which the mutant is caught within so many steps."""
    for seed in seeds:
        life = live_with(mutant, seed, num_steps)
        if life.violation is not None and life.num_steps < num_steps:
            return life
    return None


@dataclass(frozen=True)
class Sweep:
    """An allocation-failure sweep: how many lives it took, and those that broke something."""

    num_lives: int
    num_steps: int
    violations: tuple[str, ...]


def sweep(seed: int, num_steps: int) -> Sweep:
    """G18: the n-th allocation of a recorded life fails, for n = 1, 2, 3, ... until one has fewer allocations."""
    drawn = draw(seed)
    plan = replace(drawn, rates={name: rate for name, rate in drawn.rates.items() if name in CLIENT_FAULTS})
    recorded = live(plan, num_steps).events
    number, steps, violations = 0, 0, []
    while True:
        number += 1
        life = live(plan, num_steps, recorded, failing_allocation=number)
        steps += life.num_steps
        if life.violation is not None:
            violations.append(f"allocation {number}: {life.violation}")
        if life.num_allocations < number:
            return Sweep(number, steps, tuple(violations))
