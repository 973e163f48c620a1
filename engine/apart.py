"""Suspects and their steps: a request that may have killed an engine is computed alone.

A suspect (`Add.alone`) shares no step with anybody until it has got past the place where the engine died. Its steps
take turns with everybody else's, so that nobody else waits for more than every second step. An engine that dies in a
step of one request has convicted it. Pure, like the scheduler that asks.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from quire.engine.flight import Flight
from quire.engine.sequence import Group

_EVERYBODY: tuple[None] = (None,)


class Apart:
    """The suspects, and whose turn it is."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        """Those that are computed alone, the next one first."""
        self._alone_is_due = True

    def add(self, group: Group) -> None:
        """From now on `group` is computed alone, if it is a suspect at all."""
        if group.num_alone_tokens:
            self.groups.append(group)

    def turns(self, flights: Items[Flight]) -> Items[Group | None]:
        """Whose step the next one may be, to be tried in this order; None stands for all who are not apart.

        Nothing, while steps in flight have to land first: a suspect is alone in the engine, not only in its step.
        """
        if not self.groups:
            return _EVERYBODY
        self.groups = [group for group in self.groups if not _is_past(group)]
        if flights:
            if self._alone_is_due or flights[-1].works[0][0].group in self.groups:
                return ()
            self._alone_is_due = bool(self.groups)
            return _EVERYBODY
        self.groups = self.groups[1:] + self.groups[:1]
        turns = (*self.groups, None) if self._alone_is_due else (None, *self.groups)
        self._alone_is_due = not self._alone_is_due
        return turns


def _is_past(group: Group) -> bool:
    """Whether the request is over, or has its tokens."""
    return all(sequence.num_output_tokens >= group.num_alone_tokens for sequence in group.choices.values())
