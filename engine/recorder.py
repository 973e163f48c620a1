"""The flight recorder: the last thousand turns of the engine's loop, kept as they were, to be read or played again.

A turn is what the core was given (messages, readings of the clock, what the model sampled) and what it decided (the
step, with its blocks). All of it are values that exist anyway, so recording keeps references and copies nothing. The
core is pure: the same messages, readings and samples give the same steps. A recording that goes
back to the engine's first turn can be replayed; one of an older engine can be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from quire.engine.cache_groups import CacheGroup
from quire.engine.core import Runner
from quire.engine.messages import Add, Cancel, LiveIds
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.sequence import Status
from quire.engine.step import Sampled, Step

MAX_TURNS = 1000
MAX_MESSAGES = 256
"""In one turn: an engine that only takes messages makes turns too."""
MAX_DUMP_BYTES = 32 << 20

Recorded = Add | Cancel | LiveIds


class Turn(msgspec.Struct):
    """One turn of the loop: messages, then a step."""

    messages: list[tuple[float, Recorded]] = []
    """With the monotonic time at which each was taken."""
    readings: list[float] = []
    """Of the clock, in the order in which the core asked; the first is the turn's beginning, the last its end."""
    step: Step | None = None
    """What was launched."""
    sampled: Sampled | None = None
    """What was collected."""
    raised: Literal["forward", "sample", "collect"] | None = None
    """Which call to the runner raised, or has not come back."""


class Held(msgspec.Struct, frozen=True):
    """A sequence at the moment of the dump."""

    request_id: str
    choice: int
    status: str
    num_tokens: int
    num_computed_tokens: int
    block_tables: list[list[int]]


class Recording(msgspec.Struct):
    """A dump: how the core was made, its last turns, and what it holds now."""

    reason: str
    first_turn: int
    """The number of the first turn below; 0: the engine's own first, and the recording can be replayed."""
    config: SchedulerConfig
    groups: list[CacheGroup]
    num_blocks: int
    block_size: int
    free_blocks: list[int]
    """At the start, in order."""
    null_block: bool
    prefix_caching: bool
    depth: int
    turns: list[Turn]
    held: list[Held]


class FlightRecorder:
    """Keeps the last `MAX_TURNS` turns of one scheduler. `clock` is what the core is to read (monotonic seconds)."""

    def __init__(self, scheduler: Scheduler, depth: int, clock: Callable[[], float]) -> None:
        self._scheduler, self._depth, self._clock = scheduler, depth, clock
        self._free_blocks = scheduler.pool.free_block_ids()
        self._num_turns = 0
        self._turns: deque[Turn] = deque(maxlen=MAX_TURNS)
        self._begin()

    def _begin(self) -> None:
        self._turn = Turn([], [])
        self._turns.append(self._turn)
        self._num_turns += 1

    def took(self, message: Recorded, now: float) -> None:
        """The core is given `message`."""
        if self._turn.readings or len(self._turn.messages) >= MAX_MESSAGES:
            self._begin()
        self._turn.messages.append((now, message))

    def begin_step(self) -> None:
        """The core makes a step."""
        if self._turn.readings:
            self._begin()

    def now(self) -> float:
        """The clock, for the core."""
        reading = self._clock()
        self._turn.readings.append(reading)
        return reading

    def watch(self, runner: Runner) -> Runner:
        """`runner`, which is recorded from now on."""
        return _WatchedRunner(runner, self)

    @property
    def turn(self) -> Turn:
        """The turn under way."""
        return self._turn

    def dump(self, reason: str) -> Recording:
        """Everything kept, prompts and answers included (`quire.engine.disguise` takes them out)."""
        pool, held = self._scheduler.pool, []
        for group in tuple(self._scheduler.roster.groups.values()):
            for sequence in tuple(group.choices.values()):
                if sequence.status is not Status.FINISHED:
                    held.append(
                        Held(
                            group.request_id,
                            sequence.choice,
                            sequence.status.value,
                            len(sequence.token_ids),
                            sequence.num_computed_tokens,
                            [list(table) for table in sequence.block_tables],
                        )
                    )
        return Recording(
            reason=reason,
            first_turn=self._num_turns - len(self._turns),
            config=self._scheduler.config,
            groups=list(self._scheduler.groups),
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            free_blocks=self._free_blocks,
            null_block=pool.has_null_block,
            prefix_caching=pool.prefix_index is not None,
            depth=self._depth,
            turns=list(self._turns),
            held=held,
        )


def encode(recording: Recording) -> bytes:
    """As msgpack, within `MAX_DUMP_BYTES`: the oldest turns are left out where it would be more."""
    while len(data := msgspec.msgpack.encode(recording)) > MAX_DUMP_BYTES and recording.turns:
        kept = recording.turns[len(recording.turns) // 2 + 1 :]
        recording.first_turn += len(recording.turns) - len(kept)
        recording.turns = kept
    return data


class _WatchedRunner:
    """Passes everything on, and keeps what goes in and comes out."""

    def __init__(self, runner: Runner, recorder: FlightRecorder) -> None:
        self._runner, self._recorder = runner, recorder

    def forward(self, step: Step) -> None:
        """See `Runner.forward`."""
        turn = self._recorder.turn
        turn.step, turn.raised = step, "forward"
        self._runner.forward(step)
        turn.raised = None

    def sample(self, step: Step, masks: None) -> None:
        """See `Runner.sample`."""
        turn = self._recorder.turn
        turn.raised = "sample"
        self._runner.sample(step, masks)
        turn.raised = None

    def collect(self) -> Sampled:
        """See `Runner.collect`."""
        turn = self._recorder.turn
        raised, turn.raised = turn.raised, "collect"
        turn.sampled = self._runner.collect()
        turn.raised = raised
        return turn.sampled
