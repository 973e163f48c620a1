"""Typed reading of a parsed body: each method returns a checked value, or raises ApiError naming the field."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from quire.engine.sampling_params import InvalidParameter, Range, check_number
from quire.server.errors import ApiError, quoted


class Reader:
    """Reads fields of one object. null counts as absent, as everywhere in OpenAI's API."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values, self.path = values, path

    def name(self, field: str) -> str:
        """The path of a field for messages and `param`."""
        return f"{self.path}.{field}" if self.path else field

    def get(self, field: str) -> Any:
        """The raw value, or None."""
        return self.values.get(field)

    def required(self, field: str) -> Any:
        """The raw value. Raises `missing` when absent or null."""
        value = self.values.get(field)
        if value is None:
            raise ApiError("missing", f"{self.name(field)} is required.", self.name(field))
        return value

    def boolean(self, field: str, default: bool = False) -> bool:
        """True or false, and nothing that merely looks like it."""
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong_type(field, value, "true or false")
        return value

    def string(self, field: str, *, max_length: int, min_length: int = 1) -> str | None:
        """A string within bounds, or None."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong_type(field, value, "a string")
        if not min_length <= len(value) <= max_length:
            text = f"{self.name(field)} has {len(value)} characters, not {min_length}..{max_length}."
            raise ApiError("invalid_value", text, self.name(field))
        return value

    def integer(self, field: str, low: int, high: int) -> int | None:
        """An integer within bounds, or None."""
        value = self.values.get(field)
        if value is None:
            return None
        try:
            check_number(self.name(field), value, Range(low, high, integer=True))
        except InvalidParameter as error:
            raise from_invalid(error) from None
        result: int = value
        return result

    def object(self, field: str) -> dict[str, Any] | None:
        """A JSON object, or None."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong_type(field, value, "an object")
        return value

    def array(self, field: str) -> list[Any] | None:
        """A JSON array, or None."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong_type(field, value, "a list")
        return value

    def wrong_type(self, field: str, value: Any, expected: str) -> ApiError:
        """The error for a value of another type."""
        return ApiError("invalid_type", f"{self.name(field)}: {quoted(value)} is not {expected}.", self.name(field))


def from_invalid(error: InvalidParameter, renamed: Mapping[str, str] = MappingProxyType({})) -> ApiError:
    """A sampling parameter's error as the API's; `renamed` maps its fields to the names the request used."""
    name, dot, rest = error.field.partition(".")
    base, bracket, index = name.partition("[")
    field = renamed.get(base, base) + bracket + index + dot + rest
    text = str(error).removeprefix(f"{error.field}: ")
    return ApiError(error.code, f"{field}: {text}.", field[:100])
