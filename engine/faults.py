"""Rare branches, taken on purpose by tests.

The pure core asks `faults.rarely("pool.evict")` at places where a rare thing may happen at any time: a cache that is
suddenly empty, a sequence that is preempted for no reason. In production the answer is a constant False; a simulator
passes a subclass that answers True now and then, so that the code behind rare branches is walked a million times.
"""

from __future__ import annotations


class Faults:
    """Answers False always; a test's subclass decides for itself."""

    def rarely(self, name: str) -> bool:
        """Whether the rare branch `name` is taken this time."""
        return False


NO_FAULTS = Faults()
