"""A model's text on a terminal: lines broken between words, as the words come, and nothing that moves the cursor."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TextIO

from quire.clients.terminal import columns_of

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TAB = 8


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or worse."""
    return _CONTROLS.sub("\ufffd", text)


def width_of(character: str) -> int:
    """The columns of one character: 2 for wide ones (East Asian, emoji), 0 for what combines with the one before."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Wrapper:
    """Breaks a stream of text between words. `push` and `finish` return what to write now.

    A word is held back until it has ended, because only then is it known on which line it fits. Lines inside ```
    fences are left as they are: code must stay code when it is copied. Where the writing has no spaces, a line may end
    after each wide character.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._column = 0
        self._gap = ""
        self._word = ""
        self._word_width = 0
        self._head = ""
        """How the line of the text begins, enough of it to know a fence."""
        self._in_fence = False
        self._out: list[str] = []

    def push(self, text: str) -> str:
        """Take in a piece of the text."""
        for character in text:
            self._take(character)
        return self._written()

    def finish(self) -> str:
        """The text has ended: the word that was held back."""
        self._place()
        return self._written()

    def _take(self, character: str) -> None:
        if character == "\n":
            self._place()
            self._out.append(character)
            self._in_fence ^= self._head.lstrip().startswith("```")
            self._column, self._gap, self._head = 0, "", ""
            return
        if len(self._head) < 16:
            self._head += character
        if self._in_fence:
            self._out.append(character)
        elif character in " \t":
            self._place()
            self._gap += character
        else:
            self._add(character)

    def _add(self, character: str) -> None:
        width = width_of(character)
        if width == 2:
            self._place()
        self._word += character
        self._word_width += width
        if width == 2 or self._word_width >= self._columns():
            self._place()

    def _place(self) -> None:
        if not self._word:
            return
        gap = self._gap_width()
        if self._column + gap + self._word_width <= self._columns():
            self._out.append(self._gap)
            self._column += gap
        elif self._column:
            self._out.append("\n")
            self._column = 0
        self._out.append(self._word)
        self._column += self._word_width
        self._gap = self._word = ""
        self._word_width = 0

    def _gap_width(self) -> int:
        column = self._column
        for character in self._gap:
            column += _TAB - column % _TAB if character == "\t" else 1
        return column - self._column

    def _written(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text


class AnswerPrinter:
    """Writes an answer as it comes: wrapped and printable on a terminal, exactly as it is to anything else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._wrapper = Wrapper(lambda: columns_of(stream)) if stream.isatty() else None
        self._at_line_start = False

    def write(self, text: str) -> None:
        """A piece of the answer."""
        self._write(text if self._wrapper is None else self._wrapper.push(printable(text)))

    def finish(self) -> None:
        """What was held back, and the end of the line unless the answer had one."""
        if self._wrapper is not None:
            self._write(self._wrapper.finish())
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._stream.write(text)
            self._stream.flush()
