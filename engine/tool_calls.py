"""Tool calls in a model's text, in the Hermes format: `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`.

Text in, content and parts of calls out. Where the text is cut makes no difference. A call begins when its name and the
opening brace of its arguments have been read, in that order, and its arguments are passed on as they come; in any other
order it is passed on when its object is complete. Text that turns out to be no call before it has begun is content, as
it was written. A call that breaks off after it has begun keeps the arguments that came: nothing can be taken back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from quire.engine.json_scanner import JsonError, JsonScanner

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"
_SPACE = " \t\r\n"


class ContentDelta(msgspec.Struct, frozen=True):
    """Text that is no tool call."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A part of the call with number `index`: `id` and `name` on its first part only, then pieces of `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Part = ContentDelta | ToolCallDelta


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return "call_" + secrets.token_hex(12)


class HermesParser:
    """The parser of one choice. `finish` is called at the end of its text.

    White space between content and a call, and after the last call, is dropped.
    """

    def __init__(self, new_id: Callable[[], str] = new_call_id) -> None:
        self._new_id = new_id
        self._state: Literal["content", "call", "close"] = "content"
        self._held = ""
        """Text that may still turn out to be layout, a tag, or a call."""
        self._scanner = JsonScanner()
        self._num_calls = 0
        self._begun = False
        self._passed_on = 0
        """Where in the scanner's text the arguments that were not passed on yet begin."""
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """What `text` adds."""
        position = 0
        while position < len(text):
            if self._state == "content":
                position = self._content(text, position)
            elif self._state == "call":
                self._call(text[position])
                position += 1
            else:
                self._close(text[position])
                position += 1
        self._pass_on_arguments()
        return self._take_parts()

    def finish(self) -> list[Part]:
        """What is left at the end of the text."""
        if self._state == "call" and not self._begun:
            self._say(self._held + self._scanner.text())
        elif self._state == "content" and not (self._num_calls and not self._held.strip(_SPACE)):
            self._say(self._held)
        self._held = ""
        return self._take_parts()

    def _content(self, text: str, position: int) -> int:
        """Read content up to where a call may begin; the position behind what was read."""
        held = self._held + text[position:]
        start = held.find(OPEN_TAG)
        if start >= 0:
            layout = len(held[:start].rstrip(_SPACE))
            self._say(held[:layout])
            read = start + len(OPEN_TAG) - len(self._held)
            self._held = held[layout : start + len(OPEN_TAG)]
            self._state, self._scanner, self._begun = "call", JsonScanner(), False
            return position + read
        keep = next((n for n in range(len(OPEN_TAG) - 1, 0, -1) if held.endswith(OPEN_TAG[:n])), 0)
        layout = len(held[: len(held) - keep].rstrip(_SPACE))
        self._say(held[:layout])
        self._held = held[layout:]
        return len(text)

    def _call(self, character: str) -> None:
        """Read one character of a call's object."""
        scanner = self._scanner
        try:
            scanner.feed(character)
            if scanner.open_key == "arguments" and scanner.size == scanner.open_at + 1 and character == "{":
                name = self._name()
                if name is not None:
                    self._begin(name)
                    self._passed_on = scanner.open_at
            if scanner.done:
                self._complete()
        except JsonError:
            self._break_off(character)

    def _begin(self, name: str, arguments: str = "") -> None:
        self._begun = True
        self._parts.append(ToolCallDelta(self._num_calls, self._new_id(), name, arguments))
        self._num_calls += 1

    def _complete(self) -> None:
        """The object is closed: pass the call on, when that was not done on the way."""
        if self._begun:
            self._pass_on_arguments()
        else:
            name = self._name()
            if name is None:
                raise JsonError("no name")
            self._begin(name, self._arguments())
        self._state, self._held = "close", ""

    def _break_off(self, character: str) -> None:
        """The object is none: what was not passed on is content, and `character` is read again as such."""
        if self._begun:
            self._pass_on_arguments()
        else:
            size = self._scanner.size - self._scanner.done  # the last brace was accepted before the object was refused
            self._say(self._held + self._scanner.text(0, size))
        self._state, self._held = "content", ""
        self._content(character, 0)

    def _close(self, character: str) -> None:
        """Read one character between a call's object and its closing tag, which may be missing."""
        self._held += character
        tag = self._held.lstrip(_SPACE)
        if tag == CLOSE_TAG:
            self._state, self._held = "content", ""
        elif not CLOSE_TAG.startswith(tag):
            text, self._held, self._state = self._held, "", "content"
            self._content(text, 0)

    def _pass_on_arguments(self) -> None:
        """Pass on what has come of the arguments of a call that has begun."""
        scanner = self._scanner
        if self._state != "call" or not self._begun:
            return
        end = scanner.size if scanner.open_key == "arguments" else scanner.members["arguments"][1]
        if end > self._passed_on:
            piece = scanner.text(self._passed_on, end)
            self._parts.append(ToolCallDelta(self._num_calls - 1, arguments=piece))
            self._passed_on = end

    def _name(self) -> str | None:
        """The call's name, when it has come and is a name."""
        name = self._value("name")
        return name if isinstance(name, str) and name and _encodable(name) else None

    def _arguments(self) -> str:
        """The arguments of a complete object as JSON text; an object written as a string is taken out of it."""
        value = self._value("arguments")
        if value is None:
            return "{}"
        if isinstance(value, dict):
            return self._scanner.text(*self._scanner.members["arguments"])
        if isinstance(value, str) and _encodable(value):
            return value
        raise JsonError("the arguments are no object")

    def _value(self, key: str) -> Any:
        """The value of a complete member; None when there is none."""
        span = self._scanner.members.get(key)
        return None if span is None else json.loads(self._scanner.text(*span))

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(ContentDelta(text))

    def _take_parts(self) -> list[Part]:
        """The parts since the last call, neighbours of one kind joined."""
        joined: list[Part] = []
        for part in self._parts:
            last = joined[-1] if joined else None
            if isinstance(part, ContentDelta) and isinstance(last, ContentDelta):
                joined[-1] = ContentDelta(last.text + part.text)
            elif isinstance(part, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == part.index:
                joined[-1] = ToolCallDelta(last.index, last.id, last.name, last.arguments + part.arguments)
            else:
                joined.append(part)
        self._parts = []
        return joined


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: an escaped lone surrogate cannot be answered with."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
