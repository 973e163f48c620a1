"""Pictures of the block pool for people who watch it: what each block is doing, and whose it is. Pure.

Nobody in the engine keeps books for this. A picture is taken from the pool's own arrays and compared with the one
before it; slices that are equal are skipped at the speed of a comparison of lists, so that a large pool that hardly
moves costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from itertools import islice

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import NULL_BLOCK, CacheGroup
from quire.engine.messages import Statistics
from quire.engine.pool_frame import Block, PoolFrame, SequencePicture, TablePicture
from quire.engine.prefix_index import BlockKey
from quire.engine.roster import Roster
from quire.engine.sequence import Sequence, Status

INTERVAL_SECONDS = 0.1
"""Between two frames, at least."""
MAX_SHARE = 0.05
"""Of the engine's time that pictures may take; where one takes long, they get rarer."""
KEEP_ALIVE_SECONDS = 15.0
"""A frame is due after so long even if nothing has changed, so that a watcher who is gone is noticed."""
MAX_WAITING = 64
"""Waiting sequences in a frame; `num_waiting` counts all."""
_SLICE = 256


class PoolPictures:
    """Takes the pictures: a full frame first, then changes."""

    def __init__(
        self,
        pool: BlockPool,
        groups: Items[CacheGroup],
        roster: Roster,
        statistics: Callable[[], Statistics],
        started_at: float,
    ) -> None:
        self._pool, self._groups, self._roster = pool, groups, roster
        self._statistics, self._started_at = statistics, started_at
        self._null_block = NULL_BLOCK if pool.has_null_block else None
        self.restart()

    def restart(self) -> None:
        """The next frame is a full one."""
        self._is_first = True
        self._references = [0] * self._pool.num_blocks
        self._keys: list[BlockKey | None] = [None] * self._pool.num_blocks
        self._rest: object = None
        self._taken_at = 0.0

    def take(self, now: float) -> PoolFrame | None:
        """The frame of this moment; None when it would say nothing new, unless a sign of life is due."""
        references, keys = self._pool.contents()
        if self._null_block is not None:
            references[self._null_block] = 0
        blocks, evicted = self._compare(references, keys)
        statistics = self._statistics()
        frame = PoolFrame(
            kind="full" if self._is_first else "change",
            at=round(now - self._started_at, 3),
            num_blocks=self._pool.num_blocks,
            block_size=self._pool.block_size,
            blocks=tuple(blocks),
            evicted=tuple(evicted),
            sequences=tuple(self._sequences()),
            num_running=statistics.num_running,
            num_waiting=statistics.num_waiting,
            preemptions=statistics.num_preemptions,
            steps=statistics.num_steps,
        )
        rest = (frame.sequences, frame.num_running, frame.num_waiting, frame.preemptions, frame.steps)
        is_due = self._is_first or now - self._taken_at >= KEEP_ALIVE_SECONDS
        if not is_due and not blocks and not evicted and rest == self._rest:
            return None
        self._references, self._keys, self._rest = references, keys, rest
        self._is_first, self._taken_at = False, now
        return frame

    def _compare(self, references: list[int], keys: list[BlockKey | None]) -> tuple[list[Block], list[int]]:
        """Blocks whose entry is another one than before, and blocks that lost what they cached."""
        blocks: list[Block] = []
        evicted: list[int] = []
        for start in range(0, len(references), _SLICE):
            part = slice(start, start + _SLICE)
            if references[part] == self._references[part] and keys[part] == self._keys[part]:
                continue
            for block_id in range(start, min(start + _SLICE, len(references))):
                key, before = keys[block_id], self._keys[block_id]
                if before is not None and key is not before:
                    evicted.append(block_id)
                is_cached = key is not None
                if references[block_id] != self._references[block_id] or is_cached is (before is None):
                    blocks.append((block_id, references[block_id], int(is_cached)))
        return blocks, evicted

    def _sequences(self) -> Iterator[SequencePicture]:
        for sequence in self._roster.running:
            yield self._picture(sequence)
        for sequence in islice(self._roster.queue, MAX_WAITING):
            yield self._picture(sequence)

    def _picture(self, sequence: Sequence) -> SequencePicture:
        return SequencePicture(
            id=f"{sequence.group.request_id[:8]}/{sequence.choice}",
            status="running" if sequence.status is Status.RUNNING else "waiting",
            prompt=sequence.num_prompt_tokens,
            tokens=len(sequence.token_ids),
            computed=sequence.num_computed_tokens,
            cached=sequence.group.num_cached_tokens,
            max_tokens=sequence.params.max_tokens,
            tables=tuple(map(self._table, self._groups, sequence.block_tables)),
        )

    def _table(self, group: CacheGroup, table: list[int]) -> TablePicture:
        """Null blocks stand at the beginning of a table, where the window has been."""
        first = 0 if self._null_block is None else table.count(self._null_block)
        return TablePicture(group.window, first, tuple(table[first:]))


class PoolWatch:
    """Whether somebody watches, and when the next frame is due. While `active` is False there is nothing to do."""

    def __init__(self, pictures: PoolPictures) -> None:
        self._pictures = pictures
        self.active = False
        self._until = 0.0
        self._due = 0.0

    def renew(self, seconds: float, now: float) -> None:
        """Somebody watches for so long from `now` on; 0 ends it."""
        if seconds <= 0:
            self._end()
            return
        self._until = now + seconds
        self.active = True

    def look(self, clock: Callable[[], float]) -> PoolFrame | None:
        """The next frame, when it is due and there is one. Ends the watch that was not renewed."""
        begin = clock()
        if begin >= self._until:
            self._end()
            return None
        if begin < self._due:
            return None
        frame = self._pictures.take(begin)
        pause = 0.0 if frame is None else INTERVAL_SECONDS
        self._due = begin + max(pause, (clock() - begin) / MAX_SHARE)
        return frame

    def _end(self) -> None:
        """Whoever comes next begins with a full frame; nothing is kept until then."""
        if self.active:
            self._pictures.restart()
        self.active, self._due = False, 0.0
