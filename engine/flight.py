"""A step on its way: a draft while the scheduler decides, a flight from launch until its result is applied."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from quire.engine.sequence import Group, Sequence
from quire.engine.step import NewRow


@dataclass(slots=True, eq=False)
class Draft:
    """Decisions of one `schedule()`: how many tokens each sequence computes."""

    budget: int
    """Tokens that are still to give."""
    chunks: dict[Sequence, int] = field(default_factory=dict)
    """Tokens given, in the order of the step's work."""
    new_rows: list[NewRow] = field(default_factory=list)
    partial: list[Sequence] = field(default_factory=list)
    """Those whose chunk leaves them short of their next sample."""
    only: Group | None = None
    """Whose step this is alone."""
    apart: Collection[Group] = ()
    """Who has no part in a step that is not its own."""

    def takes(self, sequence: Sequence) -> bool:
        """Whether `sequence` may have a part in this step."""
        return sequence.group is self.only if self.only is not None else sequence.group not in self.apart

    def those(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those of `sequences` that may have a part, in their order."""
        if self.only is None and not self.apart:
            return list(sequences)
        return [sequence for sequence in sequences if self.takes(sequence)]

    def give(self, sequence: Sequence, num_tokens: int) -> None:
        """Let `sequence` compute its next `num_tokens`."""
        self.chunks[sequence] = num_tokens
        self.budget -= num_tokens
        if num_tokens < sequence.num_missing_tokens:
            self.partial.append(sequence)

    def take_back(self, sequence: Sequence) -> None:
        """`sequence`, which had at most one token to compute, has no part in this step."""
        self.budget += self.chunks.pop(sequence, 0)


@dataclass(slots=True, eq=False)
class Flight:
    """What `apply()` must know of a launched step."""

    step_id: int
    launched_at: float = 0.0
    """When its scheduling began."""
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
