"""Which faults happen now: one random stream, the rates of the plan, and a count of everything that was taken."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from quire.engine.faults import Faults

_OF_STEPS = ("step.before", "step.during", "step.after", "step.memory")


class Swarm(Faults):
    """The `faults` argument of the whole core. `taken` counts by name; `num_taken` is their sum.

    The allocation number `failing_allocation`, counted from 1, fails whatever the rates are; 0: none.
    """

    def __init__(self, rng: random.Random, rates: Mapping[str, float], failing_allocation: int = 0) -> None:
        self.num_allocations = 0
        self._failing_allocation = failing_allocation
        self._rng, self._rates = rng, dict(rates)
        self._of_steps = [name for name in _OF_STEPS if name in rates]
        self.taken: Counter[str] = Counter()
        self.num_taken = 0

    def rarely(self, name: str) -> bool:
        """True at the rate of `name`."""
        if name == "pool.refuse":
            self.num_allocations += 1
            if self.num_allocations == self._failing_allocation:
                self.num_taken += 1
                return True
        rate = self._rates.get(name)
        if rate is None or self._rng.random() >= rate:
            return False
        self.taken[name] += 1
        self.num_taken += 1
        return True

    def leaves_alone(self, *prefixes: str) -> bool:
        """Whether no fault of these kinds can happen."""
        return not any(name.startswith(prefixes) for name in self._rates)

    def step_fault(self) -> str | None:
        """How the step that begins now breaks down; None: it does not."""
        return next((name for name in self._of_steps if self.rarely(name)), None)

    def chance(self, probability: float) -> bool:
        """A choice that is no fault."""
        return self._rng.random() < probability

    def heal(self) -> None:
        """No fault happens any more."""
        self._rates.clear()
        self._of_steps.clear()
