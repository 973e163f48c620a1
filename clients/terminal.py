"""What the commands share: failures with an exit code, flags with a hint, piped text, colours, a line of status."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Self, TextIO

USAGE = 2
_FALLBACK_COLUMNS = 80


class CommandFailed(Exception):
    """Ends a command: one line for people, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Parser(argparse.ArgumentParser):
    """argparse that raises CommandFailed (exit code 2), says which flag was probably meant, and knows --debug."""

    def __init__(self, command: str, description: str | None, **options: Any) -> None:
        super().__init__(f"quire {command}", description=description, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="tracebacks instead of one line")

    def error(self, message: str) -> NoReturn:
        raise CommandFailed(f"{message}; `{self.prog} --help` lists the flags", USAGE)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All arguments, or CommandFailed."""
        namespace, left = self.parse_known_intermixed_args(arguments)
        if left:
            known = [flag for action in self._actions for flag in action.option_strings]
            kind = "unknown flag" if left[0].startswith("-") else "one argument too many:"
            raise CommandFailed(
                f"{kind} {left[0]}{nearest(left[0], known) or f'; `{self.prog} --help` lists the flags'}", USAGE
            )
        return namespace


def add_server_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Which server, and its key."""
    parser.add_argument(
        "--base-url", metavar="URL", help="a running server [QUIRE_BASE_URL, OPENAI_BASE_URL, this machine's port 8000]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="better given as QUIRE_API_KEY or OPENAI_API_KEY")


def finite(text: str) -> float:
    """A number that JSON can hold: inf and nan would arrive as null. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {text}")
    return value


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint that ends an error message: the known word that looks most alike, when one does."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def colours(stream: TextIO) -> bool:
    """Whether to use bold and dim: on a terminal, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str, stream: TextIO | None = None) -> str:
    """The text in bold where that is wanted."""
    return f"\033[1m{text}\033[0m" if colours(stream or sys.stdout) else text


def dim(text: str, stream: TextIO | None = None) -> str:
    """The text dimmed where that is wanted."""
    return f"\033[2m{text}\033[0m" if colours(stream or sys.stderr) else text


def columns_of(stream: TextIO) -> int:
    """The width of the terminal at this moment."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _FALLBACK_COLUMNS
    except (OSError, ValueError):
        return _FALLBACK_COLUMNS


def piped_text() -> str:
    """All of stdin when it is no terminal, without the white space around it. Raises CommandFailed unless UTF-8."""
    if sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"stdin: byte {error.start} is not UTF-8 text; convert it first", USAGE) from None


class StatusLine:
    """One line of a terminal that is written over, and gone in the end; nothing where the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""

    def show(self, text: str) -> None:
        """Replace the line."""
        if text != self._shown and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._stream.write(f"\r\033[K{dim(text[: columns_of(self._stream) - 1], self._stream)}")
            self._stream.flush()
            self._shown = text

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()
