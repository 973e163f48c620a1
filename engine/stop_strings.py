"""Finds stop strings in a text that arrives in pieces. Pure.

The result does not depend on how the text was cut: the match with the earliest start wins, among those the longest; and
a match whose last character is not beyond `floor` does not count. What may still become a match is held back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """Where a stop string was found, in characters from the start of the whole text."""

    start: int
    end: int
    string: str


class StopStrings:
    """The stop strings of one choice, and the end of its text that is held back for them."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = sorted(set(strings), key=len, reverse=True)
        self._first = re.compile("[" + "".join(re.escape(string[0]) for string in self._strings) + "]")
        self._held = ""
        self._released = 0

    def push(self, text: str, *, floor: int, final: bool = False) -> tuple[str, Match | None]:
        """Text that can be shown now, and the match if there is one; nothing may be pushed after a match.

        The shown text ends before the match. `floor` is in characters of the whole text. With `final` nothing more
        comes, so nothing is held back.
        """
        self._held += text
        held = self._held
        position = 0
        while candidate := self._first.search(held, position):
            position = candidate.start()
            if not final and any(
                len(s) > len(held) - position and s.startswith(held[position:]) for s in self._strings
            ):
                return self._release(position), None
            for string in self._strings:
                end = self._released + position + len(string)
                if end > floor and held.startswith(string, position):
                    match = Match(self._released + position, end, string)
                    return self._release(position), match
            position += 1
        return self._release(len(held)), None

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._released += count
        return text
