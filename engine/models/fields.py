"""Typed reading of config.json's fields, with limits checked before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

from quire.engine.errors import ModelError

LIMITS = {
    "num_hidden_layers": 1024,
    "n_layer": 1024,
    "vocab_size": 4_194_304,
    "hidden_size": 131_072,
    "n_embd": 131_072,
    "intermediate_size": 1_048_576,
    "n_inner": 1_048_576,
    "num_attention_heads": 4096,
    "n_head": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 1024,
    "max_position_embeddings": 134_217_728,
    "n_positions": 134_217_728,
}
"""The largest value accepted in each size field: far above every model there is, far below what exhausts memory."""


class Fields:
    """The fields of one JSON object of a model folder; every fault is a ModelError that names field and value."""

    def __init__(self, values: dict[str, Any], model: str, file: str = "config.json", path: str = "") -> None:
        self.values, self.model, self.file, self.path = values, model, file, path

    def error(self, what: str, why: str, fix: str = "correct the file, or download the model again") -> ModelError:
        """A ModelError about this file."""
        return ModelError(self.model, what, self.file, why, fix)

    def wrong(self, name: str, expected: str) -> ModelError:
        """A ModelError about a field's value."""
        found = repr(self.values.get(name))
        found = found if len(found) <= 80 else found[:77] + "..."
        return self.error("bad field", f"{self.path}{name} is {found}, expected {expected}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer from `minimum` to the field's limit; `default` when absent or null (None: required)."""
        if not self.has(name):
            if default is None:
                raise self.error("field missing", f"{self.path}{name} is not given, expected an integer")
            return default
        value, limit = self.values[name], LIMITS.get(name, 2**31 - 1)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= limit:
            raise self.wrong(name, f"an integer from {minimum} to {limit}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number greater than `above`; `default` when absent or null (None: required)."""
        if not self.has(name):
            if default is None:
                raise self.error("field missing", f"{self.path}{name} is not given, expected a number")
            return default
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or value <= above:
            raise self.wrong(name, f"a finite number above {above:g}")
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of `length` positive numbers."""
        values = self.values.get(name)
        if not isinstance(values, list) or len(values) != length:
            raise self.wrong(name, f"a list of {length} numbers")
        items = Fields({f"{name}[{i}]": value for i, value in enumerate(values)}, self.model, self.file, self.path)
        return tuple(items.number(item) for item in items.values)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false; `default` when absent or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def string(self, name: str, default: str) -> str:
        """A string; `default` when absent or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.values.get(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
                raise self.wrong(name, "a token id or a list of them")
        return tuple(dict.fromkeys(values))

    def object(self, name: str) -> Fields:
        """A nested object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.model, self.file, f"{self.path}{name}.")
