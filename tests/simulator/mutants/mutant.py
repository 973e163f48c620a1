"""A mutant: one method of the real core, replaced by one with a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """`fault(original, *arguments)` takes the place of `owner.method`; its name and first line say what is wrong."""

    owner: type
    method: str
    fault: Callable[..., Any]

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.fault.__name__.replace("_", "-")

    @property
    def description(self) -> str:
        """For people."""
        return (self.fault.__doc__ or "").strip()

    @property
    def place(self) -> str:
        """The method."""
        return f"{self.owner.__name__}.{self.method}"

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The core has this fault for a while."""
        original = getattr(self.owner, self.method)

        @wraps(original)
        def mutated(*arguments: Any, **options: Any) -> Any:
            return self.fault(original, *arguments, **options)

        setattr(self.owner, self.method, mutated)
        try:
            yield
        finally:
            setattr(self.owner, self.method, original)
