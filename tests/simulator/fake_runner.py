"""A runner without a model: its next token is a hash of everything that it reads through the block table.

Each physical slot remembers what was written there: a hash of (token id, position, tenant, everything before it), and
for error messages who wrote it. Whatever goes wrong with blocks (a wrong one, one freed too early, one read too early,
a copy that is missing) changes the hash, and so the token, and `Oracle`, which needs no blocks, disagrees at once.

With several cache groups each has slots of its own, and a group with a window reads through its window only; the null
block is neither read nor written.

A step is computed when it is launched, but its writes land when it is collected: until then only the row that wrote
them reads them. So whoever publishes a block before its step has been applied is caught.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quire.engine.cache_groups import NULL_BLOCK, ONE_GROUP, CacheGroup, has_window
from quire.engine.messages import Failure, TokenLogprobs, unpack_ids
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Sampled, SampledRow, Step

POISON = -1


def num_seen(position: int, group: CacheGroup) -> int:
    """Earlier positions read to compute one: those in the window, or the one before, which knows all others."""
    return min(position, (group.window or 2) - 1)


def num_read(end: int, group: CacheGroup) -> int:
    """Last positions read to sample the token at `end`: those in the window, or all."""
    return min(end, group.window or end)


def content_of(token_id: int, position: int, group: int, salt: int, below: int, seen: Sequence[int]) -> int:
    """What computing a token leaves in its slot of a group, given the groups below and the contents seen there."""
    return hash((token_id, position, group, salt, below, *seen))


def salt_number(salt: bytes) -> int:
    """A tenant's salt as a number: hashes of bytes differ from process to process."""
    return int.from_bytes(b"\x01" + salt, "little")


def next_token(contents: Sequence[int], choice: int, params: SamplingParams, vocab_size: int, num_output: int) -> int:
    """The token sampled by a row that reads `contents`; never a stop token before min_tokens."""
    token_id = hash((choice, params.seed or 0, *contents)) % vocab_size
    while num_output < params.min_tokens and token_id in params.stop_token_ids:
        token_id = (token_id + 1) % vocab_size
    return token_id


class Oracle:
    """What one choice answers, from its own tokens alone: no blocks, no batch, no cache. Computed as far as asked."""

    def __init__(
        self,
        prompt: Sequence[int],
        choice: int,
        params: SamplingParams,
        *,
        vocab_size: int,
        max_model_len: int,
        salt: bytes = b"",
        groups: Sequence[CacheGroup] = ONE_GROUP,
    ) -> None:
        self._num_prompt_tokens, self._choice, self._params = len(prompt), choice, params
        self._vocab_size, self._max_model_len, self._salt, self._groups = vocab_size, max_model_len, salt, groups
        self._salt_number = salt_number(salt)
        self._tokens = list(prompt)
        self._contents: list[list[int]] = [[] for _ in groups]
        self._reason: str | None = "length" if params.max_tokens == 0 else None

    def token(self, index: int) -> int | None:
        """The output token of this index; None when the choice has ended before."""
        wanted = self._num_prompt_tokens + index
        while len(self._tokens) <= wanted and self._reason is None:
            self._sample()
        return self._tokens[wanted] if wanted < len(self._tokens) else None

    def whole(self) -> tuple[list[int], str]:
        """All output tokens and the finish reason."""
        while self._reason is None:
            self._sample()
        return self._tokens[self._num_prompt_tokens :], self._reason

    def contents(self, end: int) -> list[list[int]]:
        """For each group, what computing the first `end` tokens leaves behind."""
        self._compute(end)
        return self._contents

    def _sample(self) -> None:
        tokens, params = self._tokens, self._params
        end, num_output = len(tokens), len(tokens) - self._num_prompt_tokens
        self._compute(end)
        read = [
            value
            for group, values in zip(self._groups, self._contents, strict=True)
            for value in values[end - num_read(end, group) :]
        ]
        token_id = next_token(read, self._choice, params, self._vocab_size, num_output)
        tokens.append(token_id)
        if token_id in params.stop_token_ids and num_output >= params.min_tokens:
            self._reason = "stop"
        elif num_output + 1 >= params.max_tokens or len(tokens) >= self._max_model_len:
            self._reason = "length"

    def _compute(self, end: int) -> None:
        for position in range(len(self._contents[0]), end):
            below = 0
            for number, (group, values) in enumerate(zip(self._groups, self._contents, strict=True)):
                seen = values[position - num_seen(position, group) :]
                below = content_of(self._tokens[position], position, number, self._salt_number, below, seen)
                values.append(below)


def oracle(
    prompt: Sequence[int],
    choice: int,
    params: SamplingParams,
    *,
    vocab_size: int,
    max_model_len: int,
    salt: bytes = b"",
    groups: Sequence[CacheGroup] = ONE_GROUP,
) -> tuple[list[int], str]:
    """All output tokens and the finish reason of one choice, from its tokens alone."""
    return Oracle(
        prompt, choice, params, vocab_size=vocab_size, max_model_len=max_model_len, salt=salt, groups=groups
    ).whole()


class Writer(NamedTuple):
    """Who wrote a slot."""

    token_id: int
    position: int
    salt: bytes
    request_id: str
    generation: int
    """Of the block: how often it had been handed out."""


class Row:
    """What the runner keeps of a row between steps."""

    def __init__(self, new: NewRow, salt: bytes, num_groups: int) -> None:
        self.request_id, self.choice, self.params, self.salt = new.request_id, new.choice, new.params, salt
        self.salt_number = salt_number(salt)
        self.token_ids = unpack_ids(new.token_ids)
        self.num_prompt_tokens = new.num_prompt_tokens
        self.block_tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.in_air: dict[int, int] = {}
        """Slot -> content, of this row's writes that have not landed."""
        self.num_landed = 0
        """Positions before this one are not in the air."""
        self.doomed = False
        """Its numbers are none: what it writes is not what its tokens say."""


class FakeRunner:
    """Implements `quire.engine.core.Runner`.

    `salt_of` tells the tenant of a request, `generation_of` the generation of a block. Planted faults: `raises(step)`
    may raise in `forward`; `fails(step_id, row, request_id)` may return a `Failure` for a sampling row; `table(row,
    block_ids)` may return wrong block ids. `log` holds every step; `num_computed_tokens` counts tokens by request id.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        vocab_size: int = 50,
        groups: Sequence[CacheGroup] = ONE_GROUP,
        salt_of: Callable[[str], bytes] = lambda request_id: b"",
        generation_of: Callable[[int], int] = lambda block_id: 0,
        raises: Callable[[Step], None] = lambda step: None,
        fails: Callable[[int, int, str], Failure | None] = lambda step_id, row, request_id: None,
        table: Callable[[int, tuple[int, ...]], tuple[int, ...]] = lambda row, block_ids: block_ids,
    ) -> None:
        self.block_size, self.vocab_size, self.groups = block_size, vocab_size, groups
        self.slots = [POISON] * (num_blocks * block_size)
        self.writers: dict[int, Writer] = {}
        self.rows: dict[int, Row] = {}
        self.log: list[Step] = []
        self.num_computed_tokens: dict[str, int] = {}
        self._poison = [POISON] * block_size
        self._has_window = has_window(groups)
        self._salt_of, self._generation_of = salt_of, generation_of
        self._raises, self._fails, self._table = raises, fails, table
        self._pending: deque[tuple[Step, list[tuple[Row, int, dict[int, int]]], Sampled]] = deque()

    def forward(self, step: Step) -> None:
        """Compute the step; nothing lands."""
        self.log.append(step)
        for row in step.released_rows:
            self.rows.pop(row, None)
        for new in step.new_rows:
            self.rows[new.row] = Row(new, self._salt_of(new.request_id), len(self.groups))
        self._raises(step)
        for source, target in step.block_copies:
            self._copy(source, target)
        writes = [self._compute(work) for work in step.work]
        slots = [slot for _, _, written in writes for slot in written]
        assert len(slots) == len(set(slots)), f"I4: step {step.step_id} writes a slot twice"
        self._pending.append((step, writes, self._sampled(step)))

    def sample(self, step: Step, masks: None) -> None:
        """Sampled tokens are the runner's own at once; the scheduler learns of them at `collect`."""
        assert self._pending[-1][0].step_id == step.step_id

    def collect(self) -> Sampled:
        """The oldest step's writes land."""
        _, writes, sampled = self._pending.popleft()
        for row, end, written in writes:
            self._land(row, end, written)
        return sampled

    def poison(self, block_ids: Sequence[int]) -> None:
        """Spoil blocks that nobody may read any more."""
        for block_id in block_ids:
            start = block_id * self.block_size
            self.slots[start : start + self.block_size] = self._poison

    def _copy(self, source: int, target: int) -> None:
        size = self.block_size
        self.slots[target * size : (target + 1) * size] = self.slots[source * size : (source + 1) * size]
        generation = self._generation_of(target)
        for offset in range(size):
            writer = self.writers.get(source * size + offset)
            if writer is not None:
                self.writers[target * size + offset] = writer._replace(generation=generation)

    def _land(self, row: Row, end: int, written: dict[int, int]) -> None:
        """The writes of one work are in the slots from now on; it computed the positions up to `end`."""
        per_group = len(written) // len(self.groups)
        for index, (slot, value) in enumerate(written.items()):
            self.slots[slot] = value
            if row.in_air.get(slot) == value:
                del row.in_air[slot]
            position = end - per_group + index // len(self.groups)
            generation = self._generation_of(slot // self.block_size)
            self.writers[slot] = Writer(row.token_ids[position], position, row.salt, row.request_id, generation)
        row.num_landed = end

    def _compute(self, work: RowWork) -> tuple[Row, int, dict[int, int]]:
        row = self.rows[work.row]
        assert len(work.new_block_ids) in (0, len(self.groups))
        if work.new_block_ids and not row.block_tables[0]:
            row.num_landed = work.start
        for table, block_ids in zip(row.block_tables, work.new_block_ids, strict=False):
            table += self._table(work.row, block_ids)
        written: dict[int, int] = {}
        for position in range(work.start, work.start + work.num_tokens):
            below = 0
            token_id = row.token_ids[position] if not row.doomed else ~row.token_ids[position]
            for number, group in enumerate(self.groups):
                seen = self._read(row, number, position - num_seen(position, group), position)
                below = content_of(token_id, position, number, row.salt_number, below, seen)
                slot = self._slot(row, number, position)
                row.in_air[slot] = written[slot] = below
        count = self.num_computed_tokens.get(row.request_id, 0)
        self.num_computed_tokens[row.request_id] = count + work.num_tokens
        return row, work.start + work.num_tokens, written

    def _slot(self, row: Row, group: int, position: int) -> int:
        index, offset = divmod(position, self.block_size)
        block_id = row.block_tables[group][index]
        assert block_id != NULL_BLOCK or not self._has_window, f"I16: {row.request_id} needs the null block"
        return block_id * self.block_size + offset

    def _read(self, row: Row, group: int, start: int, end: int) -> list[int]:
        """Contents of the positions from `start` to `end`, through the block table."""
        slots, size, table = self.slots, self.block_size, row.block_tables[group]
        values: list[int] = []
        position, landed = start, min(end, row.num_landed)
        while position < landed:
            index, offset = divmod(position, size)
            block_id = table[index]
            assert block_id != NULL_BLOCK or not self._has_window, f"I16: {row.request_id} needs the null block"
            count = min(size - offset, landed - position)
            slot = block_id * size + offset
            values += slots[slot : slot + count]
            position += count
        while position < end:
            slot = self._slot(row, group, position)
            values.append(row.in_air.get(slot, slots[slot]))
            position += 1
        return values

    def _sampled(self, step: Step) -> Sampled:
        rows: list[SampledRow] = []
        prompt_logprobs = {}
        for work in step.work:
            reader = self.rows[work.row]
            end = work.start + work.num_tokens
            if work.samples:
                contents = [
                    value
                    for number, group in enumerate(self.groups)
                    for value in self._read(reader, number, end - num_read(end, group), end)
                ]
                rows += [self._sample_row(step, reader, row, end, contents) for row in work.samples]
            if work.prompt_logprobs:
                last = min(end + 1, reader.num_prompt_tokens)
                prompt_logprobs[work.row] = tuple(
                    TokenLogprobs(reader.token_ids[position], -float(position), 1)
                    for position in range(work.start + 1, last)
                )
        return Sampled(step.step_id, tuple(rows), prompt_logprobs)

    def _sample_row(self, step: Step, reader: Row, row_number: int, end: int, contents: list[int]) -> SampledRow:
        """What row `row_number` samples from the `contents` that `reader` sees of the first `end` tokens."""
        row = self.rows[row_number]
        assert len(row.token_ids) == end, f"row {row_number} samples before it has caught up"
        failure = self._fails(step.step_id, row_number, row.request_id)
        if failure is not None:
            row.token_ids.append(0)
            return SampledRow(row_number, (), failure=failure)
        num_output = len(row.token_ids) - row.num_prompt_tokens
        token_id = next_token(contents, row.choice, row.params, self.vocab_size, num_output)
        row.token_ids.append(token_id)
        logprobs = None if row.params.logprobs is None else (TokenLogprobs(token_id, -1.0, 1),)
        return SampledRow(row_number, (token_id,), logprobs)
