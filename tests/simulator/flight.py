"""A flight recording played again: the real core, given what it was given then, has to decide what it decided then."""

from __future__ import annotations

from collections.abc import Iterator

from quire.engine.block_pool import BlockPool
from quire.engine.cache_report import ExplainingIndex
from quire.engine.core import EngineCore
from quire.engine.messages import Add, Cancel, LiveIds
from quire.engine.recorder import Recording, Turn
from quire.engine.scheduler import Scheduler
from quire.engine.step import Sampled, Step


class _Tape:
    """A `Runner` that answers as the recorded one did."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.step: Step | None = None

    def forward(self, step: Step) -> None:
        """See `Runner.forward`."""
        self.step = step
        self._raise_in("forward")

    def sample(self, step: Step, masks: None) -> None:
        """See `Runner.sample`."""
        self._raise_in("sample")

    def collect(self) -> Sampled:
        """See `Runner.collect`."""
        self._raise_in("collect")
        assert self.turn.sampled is not None, "the core collects where it did not then"
        return self.turn.sampled

    def _raise_in(self, call: str) -> None:
        if self.turn.raised == call:
            raise RuntimeError("as recorded")


def core_of(recording: Recording) -> tuple[EngineCore, _Tape]:
    """The core as it was when the engine started, and the tape that plays its model."""
    index = ExplainingIndex(b"") if recording.prefix_caching else None
    pool = BlockPool(
        recording.num_blocks,
        recording.block_size,
        prefix_index=index,
        order=recording.free_blocks,
        null_block=recording.null_block,
    )
    tape = _Tape()
    scheduler = Scheduler(recording.config, pool, groups=tuple(recording.groups))
    return EngineCore(scheduler, tape, depth=recording.depth), tape


def replay(recording: Recording) -> Iterator[tuple[int, Step | None, Step | None]]:
    """Play the turns one by one: (number, the step then, the step now). Raises ValueError for a beginning that is lost.

    The last turn of an engine that died within it is played up to where it stood.
    """
    if recording.first_turn:
        raise ValueError(
            f"the recording begins at turn {recording.first_turn}; only one that begins at 0 can be replayed, because "
            f"the state before it is not recorded"
        )
    core, tape = core_of(recording)
    for number, turn in enumerate(recording.turns):
        tape.turn, tape.step = turn, None
        for now, message in turn.messages:
            match message:
                case Add():
                    core.add(message, now)
                case Cancel():
                    core.cancel(message, now)
                case LiveIds():
                    core.live_ids(message, now)
        if turn.readings:
            readings = iter(turn.readings)
            try:
                core.step(lambda readings=readings: next(readings))  # type: ignore[misc]
            except StopIteration:
                if number + 1 < len(recording.turns):
                    raise AssertionError(f"turn {number}: the core reads the clock more often than then") from None
        yield number, turn.step, tape.step
