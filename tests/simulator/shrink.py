"""From a life that breaks an invariant to a short one that breaks the same: fewer events, fewer faults.

Source: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from quire.simulator.events import Event
from quire.simulator.lives import Life, live
from quire.simulator.plan import Plan

Item = TypeVar("Item")
MAX_TRIALS = 400


def ddmin(items: Sequence[Item], fails: Callable[[list[Item]], bool]) -> list[Item]:
    """A part of `items`, in their order, that fails too, and from which no single item can be left out."""
    kept, num_parts = list(items), 2
    while len(kept) >= 2:
        size = -(-len(kept) // num_parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if fails(rest):
                kept, num_parts = rest, max(num_parts - 1, 2)
                break
        else:
            if num_parts >= len(kept):
                break
            num_parts = min(len(kept), 2 * num_parts)
    return [] if len(kept) == 1 and fails([]) else kept


def shrink(life: Life, num_steps: int) -> Life:
    """A smaller life with the same violation; `life` has one."""
    assert life.violation is not None
    invariant, best, trials = life.violation.invariant, life, 0

    def fails(plan: Plan, events: Sequence[Event]) -> bool:
        nonlocal best, trials
        trials += 1
        if trials > MAX_TRIALS:
            return False
        found = live(plan, num_steps, events)
        if found.violation is None or found.violation.invariant != invariant:
            return False
        best = replace(found, events=tuple(events))
        return True

    kept = ddmin(life.events, lambda events: fails(life.plan, events))
    rates = ddmin(list(life.plan.rates), lambda names: fails(_with(life.plan, names), kept))
    ddmin(kept, lambda events: fails(_with(life.plan, rates), events))
    return best


def _with(plan: Plan, names: Sequence[str]) -> Plan:
    return replace(plan, rates={name: plan.rates[name] for name in names})
