"""Frames of the picture of the block pool, as they cross the process line and as watchers get them: values, torch-free.

A full frame says everything; a change says what differs from the frame before it. Either lists every running sequence.
Field names are those of `GET /playground/pool`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Block = tuple[int, int, int]
"""Block id, references, and 1 when its content can be found through the prefix index; (id, 0, 0): free."""


class TablePicture(msgspec.Struct, frozen=True):
    """What a sequence holds in one cache group: the end of its block table that is still in use."""

    window: int | None
    """How many positions back the group's layers look; None: to the first one."""
    first: int
    """Place of the first of `blocks` in the table: so many blocks the window has slid past, and they went back."""
    blocks: tuple[int, ...]


class SequencePicture(msgspec.Struct, frozen=True):
    """One sequence. Counts are of tokens."""

    id: str
    """The first eight characters of the request id, a slash, and the choice."""
    status: Literal["running", "waiting"]
    prompt: int
    tokens: int
    """The prompt's and those generated so far."""
    computed: int
    """Tokens whose keys and values lie in the blocks."""
    cached: int
    """Of the prompt, found in the prefix cache when the request was admitted."""
    max_tokens: int
    tables: tuple[TablePicture, ...]
    """One for each cache group; none while it waits."""


class PoolFrame(msgspec.Struct, frozen=True):
    """One frame."""

    kind: Literal["full", "change"]
    at: float
    """Seconds since the engine started."""
    num_blocks: int
    block_size: int
    blocks: tuple[Block, ...]
    """Full: every block that is referenced or cached. Change: every block whose entry is another one than before."""
    evicted: tuple[int, ...]
    """Blocks that lost their cached content since the frame before; some of them hold other content by now."""
    sequences: tuple[SequencePicture, ...]
    num_running: int
    num_waiting: int
    preemptions: int
    steps: int


class PoolFold:
    """Frames in order, folded into one that says the same as all of them."""

    def __init__(self, first: PoolFrame) -> None:
        self._kind = first.kind
        self._last = first
        self._blocks = {block[0]: block for block in first.blocks}
        self._evicted = dict.fromkeys(first.evicted)

    def add(self, frame: PoolFrame) -> None:
        """The frame that follows."""
        self._last = frame
        if frame.kind == "full":
            self._kind = "full"
            self._blocks.clear()
            self._evicted.clear()
        self._evicted.update(dict.fromkeys(frame.evicted))
        for block in frame.blocks:
            if self._kind == "full" and not block[1] and not block[2]:
                self._blocks.pop(block[0], None)
            else:
                self._blocks[block[0]] = block

    def frame(self) -> PoolFrame:
        """All of them as one."""
        return msgspec.structs.replace(
            self._last, kind=self._kind, blocks=tuple(self._blocks.values()), evicted=tuple(self._evicted)
        )

    def forget_evicted(self) -> None:
        """For who joins later: what was lost before is nothing to them."""
        self._evicted.clear()
