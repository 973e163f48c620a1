"""What every study is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """`tiny` runs everything with hardly any work: it shows that a study runs, and its figures mean nothing."""

    model: str | None = None
    """A folder; None: the starter model."""
    seed: int = 0
    tiny: bool = False
