"""What is kept between runs: for each mutant a seed that kills it, and how far a long run has come."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

RECORDED = Path(__file__).parent / "mutants" / "recorded.json"
MAX_STEPS = 2000
"""Within which the recorded seed kills its mutant."""


class Kill(msgspec.Struct, frozen=True):
    """The life that caught a mutant."""

    seed: int
    step: int
    invariant: str


class Progress(msgspec.Struct):
    """A long run, so far."""

    next_seed: int = 0
    num_steps: int = 0
    num_lives: int = 0
    cpu_seconds: float = 0.0
    violations: dict[int, str] = {}
    """By seed."""
    coverage: dict[str, int] = {}


def read_kills(path: Path = RECORDED) -> dict[str, Kill]:
    """Mutant -> the life that caught it."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Kill])


def write_kills(kills: dict[str, Kill], path: Path = RECORDED) -> None:
    """One line a mutant."""
    lines = [f"  {json.dumps(name)}: {msgspec.json.encode(kill).decode()}" for name, kill in kills.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_progress(path: Path) -> Progress:
    """Where the run stopped."""
    return msgspec.json.decode(path.read_bytes(), type=Progress)


def write_progress(progress: Progress, path: Path) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(progress)))
    draft.replace(path)
