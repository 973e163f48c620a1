"""A JSON object read one character at a time, strictly. Pure.

What `feed` has accepted is the beginning of some valid JSON object (a number or literal is checked at its end), so that
a reader may pass pieces on before the object is complete.
"""

from __future__ import annotations

import json
import re
from typing import Literal

MAX_DEPTH = 64
_SPACE = frozenset(" \t\r\n")
_HEX = frozenset("0123456789abcdefABCDEF")
_ESCAPED = frozenset('"\\/bfnrt')
_SCALAR_TEXT = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_SCALAR = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)\Z")
_CLOSERS = {"{": "}", "[": "]"}

_State = Literal["value", "first item", "first key", "key", "colon", "comma", "string", "escape", "unicode", "scalar"]


class JsonError(ValueError):
    """The character cannot stand here."""


class JsonScanner:
    """Scans one object.

    `members` are those of the outermost object that are complete: key to (start, end) of the value's text. `open_key`
    is the key of the member whose value is being read, None between members; `open_at` says where that value began.
    """

    def __init__(self) -> None:
        self.size = 0
        """Characters accepted so far."""
        self.done = False
        """The outermost object is closed."""
        self.members: dict[str, tuple[int, int]] = {}
        self.open_key: str | None = None
        self.open_at = 0
        self._characters: list[str] = []
        self._state: _State = "value"
        self._stack: list[str] = []
        self._token_at = 0
        """Where the string, number or literal being read began."""
        self._is_key = False
        self._key = ""
        self._num_digits = 0

    def feed(self, character: str) -> None:
        """Take one character; raises JsonError, after which nothing more may be fed."""
        if self.done:
            raise JsonError("the object has ended")
        if self._state in ("string", "escape", "unicode"):
            self._in_string(character)
        elif self._state == "scalar" and character in _SCALAR_TEXT:
            pass
        else:
            if self._state == "scalar":
                self._end_scalar()
            if character not in _SPACE:
                self._structure(character)
        self._characters.append(character)
        self.size += 1
        if self._state == "comma" and len(self._stack) == 1 and self.open_key is not None:
            self._end_member()

    def text(self, start: int = 0, end: int | None = None) -> str:
        """The accepted text from `start` to `end`."""
        return "".join(self._characters[start:end])

    def _structure(self, character: str) -> None:
        match self._state, character:
            case ("first item", "]") | ("first key" | "comma", "}") | ("comma", "]"):
                self._close(character)
            case ("value" | "first item", _):
                self._begin_value(character)
            case ("first key" | "key", '"'):
                self._begin_string(is_key=True)
            case ("colon", ":"):
                self._state = "value"
            case ("comma", ","):
                self._state = "key" if self._stack[-1] == "{" else "value"
            case _:
                raise JsonError(f"{character!r} where a {self._state} belongs")

    def _begin_value(self, character: str) -> None:
        if not self._stack and character != "{":
            raise JsonError("no object")
        if len(self._stack) == 1:
            self.open_key, self.open_at = self._key, self.size
        if character in _CLOSERS:
            if len(self._stack) >= MAX_DEPTH:
                raise JsonError("nested too deeply")
            self._stack.append(character)
            self._state = "first key" if character == "{" else "first item"
        elif character == '"':
            self._begin_string(is_key=False)
        elif character in _SCALAR_TEXT:
            self._state, self._token_at = "scalar", self.size
        else:
            raise JsonError(f"{character!r} begins no value")

    def _begin_string(self, *, is_key: bool) -> None:
        self._state, self._is_key, self._token_at = "string", is_key, self.size

    def _in_string(self, character: str) -> None:
        if self._state == "unicode":
            if character not in _HEX:
                raise JsonError("no hexadecimal digit")
            self._num_digits += 1
            self._state = "string" if self._num_digits == 4 else "unicode"
        elif self._state == "escape":
            if character != "u" and character not in _ESCAPED:
                raise JsonError("no escape")
            self._state, self._num_digits = ("unicode", 0) if character == "u" else ("string", 0)
        elif character == "\\":
            self._state = "escape"
        elif character == '"':
            self._state = "colon" if self._is_key else "comma"
            if self._is_key and len(self._stack) == 1:
                self._key = json.loads(self.text(self._token_at) + '"')
                if self._key in self.members:
                    raise JsonError(f"the key {self._key!r} came before")
        elif character < " ":
            raise JsonError("a control character within a string")

    def _end_scalar(self) -> None:
        if not _SCALAR.match(self.text(self._token_at)):
            raise JsonError("neither number nor literal")
        self._state = "comma"
        if len(self._stack) == 1:
            self._end_member()

    def _close(self, character: str) -> None:
        if _CLOSERS[self._stack.pop()] != character:
            raise JsonError(f"{character!r} closes nothing")
        self._state = "comma"
        self.done = not self._stack

    def _end_member(self) -> None:
        assert self.open_key is not None
        self.members[self.open_key] = (self.open_at, self.size)
        self.open_key = None
