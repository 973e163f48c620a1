"""The types of settings: text from a flag, a variable or YAML becomes a checked value, or a ValueError that says what
was expected. Every value arrives as a string (flags, environment) or as YAML's own type."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?[bB])?")


def parse_size(text: str) -> int:
    """Read a whole number with an optional unit: 4k = 4000, 4K = 4096, 8GiB = 8 * 2^30, 2GB = 2 * 10^9.

    A lone capital letter is binary and a lone small one decimal (vLLM's rule); with a B, only the i makes it binary.
    Raises ValueError on anything else, and when the result is no whole number (0.3k is one, 0.0003k is not).
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"no number: {text!r}")
    digits, unit, byte = match.groups()
    if byte:
        unit = unit.upper() if byte[0] == "i" else unit.lower()
    factor = _UNITS[unit]
    value = float(digits) * factor if "." in digits else int(digits) * factor
    if value != int(value):
        raise ValueError(f"no whole number: {text!r}")
    return int(value)


def _whole(low: int, high: int | None, optional: bool, expected: str) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        if optional and (value is None or value == "auto"):
            return None
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except ValueError:
                raise ValueError(f"expected {expected}") from None
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            raise ValueError(f"expected {expected}")
        return value

    return read


def _range(low: int, high: int | None) -> str:
    return f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"


def whole(low: int, high: int | None = None) -> BeforeValidator:
    """A whole number between `low` and `high`, both included; units as in `parse_size`."""
    return BeforeValidator(_whole(low, high, False, _range(low, high)))


def optional(low: int, high: int | None = None) -> BeforeValidator:
    """Like `whole`; None and "auto" leave the choice to the start-up."""
    return BeforeValidator(_whole(low, high, True, f"{_range(low, high)}, or auto"))


def _block_size(value: Any) -> int | None:
    expected = "a power of two from 1 to 256"
    number = _whole(1, 256, False, expected)(value)
    if number is None or number & (number - 1):
        raise ValueError(f"expected {expected}")
    return number


def _number(expected: str, allowed: Callable[[float], bool]) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not allowed(number):
            raise ValueError(f"expected {expected}")
        return number

    return read


def _optional_milliseconds(value: Any) -> float | None:
    expected = "milliseconds, more than 0"
    return None if value is None else _number(expected, lambda number: number > 0.0 and math.isfinite(number))(value)


def _optional_share(value: Any) -> float | None:
    expected = "a share above 0 and up to 1, such as 0.9"
    return None if value is None else _number(expected, lambda number: 0.0 < number <= 1.0)(value)


def _names(value: Any) -> Any:
    """A list from YAML or repeated flags, JSON in one string, or names between commas."""
    if isinstance(value, str):
        if value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError("expected a list of names") from None
        else:
            value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names")
    if len(value) == 1 and value[0].startswith("["):
        return _names(value[0])
    names = tuple(name.strip() for name in value)
    if not all(names):
        raise ValueError("expected a list of names, none of them empty")
    return names


def matching(pattern: str, expected: str) -> BeforeValidator:
    """A string that matches `pattern` as a whole."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {expected}")
        return value

    return BeforeValidator(read)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected text")
    return value


Name = Annotated[str, BeforeValidator(_text)]
RootPath = Annotated[str, matching(r"(/[^\s?#]*[^\s?#/])?", "a path such as /llm, or nothing")]
Whole = Annotated[int, whole(0)]
Port = Annotated[int, whole(0, 65535)]
Count = Annotated[int, whole(1)]
OptionalPort = Annotated[int | None, optional(0, 65535)]
OptionalCount = Annotated[int | None, optional(1)]
BlockSize = Annotated[int, BeforeValidator(_block_size)]
Seconds = Annotated[
    float, BeforeValidator(_number("seconds, 0 or more", lambda number: number >= 0.0 and math.isfinite(number)))
]
OptionalMilliseconds = Annotated[float | None, BeforeValidator(_optional_milliseconds)]
OptionalShare = Annotated[float | None, BeforeValidator(_optional_share)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
