"""What the commands share: failures with an exit code, flags with a hint, and text that is safe to print."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

USAGE = 2


class CommandFailed(Exception):
    """Ends a command: one line for people, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Parser(argparse.ArgumentParser):
    """argparse that raises CommandFailed (exit code 2), and says which flag was probably meant."""

    def error(self, message: str) -> NoReturn:
        raise CommandFailed(f"{message}; `{self.prog} --help` lists the flags", USAGE)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All arguments, or CommandFailed."""
        namespace, left = self.parse_known_args(arguments)
        if left:
            known = [flag for action in self._actions for flag in action.option_strings]
            kind = "unknown flag" if left[0].startswith("-") else "one argument too many:"
            raise CommandFailed(
                f"{kind} {left[0]}{nearest(left[0], known) or f'; `{self.prog} --help` lists the flags'}", USAGE
            )
        return namespace


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


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str, stream: TextIO) -> str:
    """A model's text for a stream: on a terminal without control characters, which could move the cursor or worse."""
    return _CONTROLS.sub("\ufffd", text) if stream.isatty() else text
