"""A step on its way: a draft while the scheduler decides, a flight from launch until its result is applied."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.engine.sequence import Sequence
from quire.engine.step import NewRow


@dataclass(slots=True, eq=False)
class Draft:
    """Decisions of one `schedule()`: how many tokens each sequence computes."""

    budget: int
    """Tokens that are still to give."""
    chunks: dict[Sequence, int] = field(default_factory=dict)
    """Tokens given, in the order of the step's work."""
    new_rows: list[NewRow] = field(default_factory=list)
    num_partial: int = 0
    """Chunks that leave their sequence short of its next sample."""

    def give(self, sequence: Sequence, num_tokens: int) -> None:
        """Let `sequence` compute its next `num_tokens`."""
        self.chunks[sequence] = num_tokens
        self.budget -= num_tokens
        self.num_partial += num_tokens < sequence.num_missing_tokens


@dataclass(slots=True, eq=False)
class Flight:
    """What `apply()` must know of a launched step."""

    step_id: int
    works: list[tuple[Sequence, int, int]] = field(default_factory=list)
    """(sequence, start, end): positions start .. end - 1 are being written."""
    samplers: list[Sequence] = field(default_factory=list)
    """Who samples, in the order of `Sampled.rows`."""
    forks: list[tuple[Sequence, list[Sequence]]] = field(default_factory=list)
    """(leader, the choices that sample beside it and then fork from it)."""
    endings: list[Sequence] = field(default_factory=list)
    """Who is done without sampling (max_tokens 0)."""
    copies: list[tuple[Sequence, int, int]] = field(default_factory=list)
    """(new owner, source, target): both blocks are pinned."""

    def sequences(self) -> list[Sequence]:
        """Everyone whose state depends on this step: those at work, the forks, the owners of copies."""
        everyone = [sequence for sequence, _, _ in self.works]
        everyone += [fork for _, forks in self.forks for fork in forks]
        everyone += [owner for owner, _, _ in self.copies]
        return list(dict.fromkeys(everyone))
