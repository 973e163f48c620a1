"""A runner without a model: its next token is a hash of everything that it reads through the block table.

Each physical slot remembers what was written there: (token id, position, tenant, everything before it). Whatever goes
wrong with blocks (a wrong one, one freed too early, one read too early, a copy that is missing) changes the hash, and
so the token, and `oracle`, which needs no blocks, disagrees at once.

With several cache groups each has slots of its own, and a group with a window reads through its window only; the null
block is neither read nor written.

A step is computed when it is launched, but its writes land when it is collected: until then only the row that wrote
them reads them. So whoever publishes a block before its step has been applied is caught.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from quire.engine.cache_groups import NULL_BLOCK, ONE_GROUP, CacheGroup, has_window
from quire.engine.messages import Failure, TokenLogprobs, unpack_ids
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Sampled, SampledRow, Step

POISON = -1


def seen(position: int, group: CacheGroup) -> range:
    """The earlier positions read to compute one: those in the window, or the one before, which knows all others."""
    return range(max(0, position - (group.window or 2) + 1), position)


def contents_of(token_id: int, position: int, salt: bytes, earlier: Sequence[Sequence[int]]) -> list[int]:
    """What computing a token leaves in its slot of each group, given the contents seen there."""
    contents: list[int] = []
    for group, values in enumerate(earlier):
        contents.append(hash((token_id, position, group, *salt, *contents, *values)))
    return contents


def next_token(contents: Sequence[int], choice: int, params: SamplingParams, vocab_size: int, num_output: int) -> int:
    """The token sampled by a row that reads `contents`; never a stop token before min_tokens."""
    token_id = hash((tuple(contents), choice, params.seed or 0)) % vocab_size
    while num_output < params.min_tokens and token_id in params.stop_token_ids:
        token_id = (token_id + 1) % vocab_size
    return token_id


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
    tokens = list(prompt)
    written: list[list[int]] = [[] for _ in groups]

    def compute(token_id: int) -> None:
        position = len(written[0])
        earlier = [[values[p] for p in seen(position, group)] for group, values in zip(groups, written, strict=True)]
        for values, value in zip(written, contents_of(token_id, position, salt, earlier), strict=True):
            values.append(value)

    for token_id in tokens:
        compute(token_id)
    if params.max_tokens == 0:
        return [], "length"
    while True:
        num_output = len(tokens) - len(prompt)
        contents = [
            value for group, values in zip(groups, written, strict=True) for value in values[-(group.window or 0) :]
        ]
        token_id = next_token(contents, choice, params, vocab_size, num_output)
        tokens.append(token_id)
        if token_id in params.stop_token_ids and num_output >= params.min_tokens:
            return tokens[len(prompt) :], "stop"
        if num_output + 1 >= params.max_tokens or len(tokens) >= max_model_len:
            return tokens[len(prompt) :], "length"
        compute(token_id)


class _Row:
    """What the runner keeps of a row between steps."""

    def __init__(self, new: NewRow, salt: bytes, num_groups: int) -> None:
        self.request_id, self.choice, self.params, self.salt = new.request_id, new.choice, new.params, salt
        self.token_ids = unpack_ids(new.token_ids)
        self.num_prompt_tokens = new.num_prompt_tokens
        self.block_tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.in_air: dict[int, int] = {}
        """Slot -> content, of this row's writes that have not landed."""


class FakeRunner:
    """Implements `quire.engine.core.Runner`.

    `salt_of` tells the tenant of a request. Planted faults: `raises(step)` may raise in `forward`; `fails(step_id, row,
    request_id)` may return a `Failure` for a sampling row; `table(row, block_ids)` may return wrong block ids.
    `log` holds every step; `num_computed_tokens` counts tokens by request id.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        vocab_size: int = 50,
        groups: Sequence[CacheGroup] = ONE_GROUP,
        salt_of: Callable[[str], bytes] = lambda request_id: b"",
        raises: Callable[[Step], None] = lambda step: None,
        fails: Callable[[int, int, str], Failure | None] = lambda step_id, row, request_id: None,
        table: Callable[[int, tuple[int, ...]], tuple[int, ...]] = lambda row, block_ids: block_ids,
    ) -> None:
        self.block_size, self.vocab_size, self.groups = block_size, vocab_size, groups
        self.slots = [POISON] * (num_blocks * block_size)
        self.rows: dict[int, _Row] = {}
        self.log: list[Step] = []
        self.num_computed_tokens: dict[str, int] = {}
        self._salt_of, self._raises, self._fails, self._table = salt_of, raises, fails, table
        self._pending: deque[tuple[Step, list[tuple[_Row, dict[int, int]]], Sampled]] = deque()

    def forward(self, step: Step) -> None:
        """Compute the step; nothing lands."""
        self.log.append(step)
        for row in step.released_rows:
            self.rows.pop(row, None)
        for new in step.new_rows:
            self.rows[new.row] = _Row(new, self._salt_of(new.request_id), len(self.groups))
        self._raises(step)
        for source, target in step.block_copies:
            size = self.block_size
            self.slots[target * size : (target + 1) * size] = self.slots[source * size : (source + 1) * size]
        writes = [self._compute(work) for work in step.work]
        slots = [slot for _, written in writes for slot in written]
        assert len(slots) == len(set(slots)), f"step {step.step_id} writes a slot twice"
        self._pending.append((step, writes, self._sampled(step)))

    def sample(self, step: Step, masks: None) -> None:
        """Sampled tokens are the runner's own at once; the scheduler learns of them at `collect`."""
        assert self._pending[-1][0].step_id == step.step_id

    def collect(self) -> Sampled:
        """The oldest step's writes land."""
        _, writes, sampled = self._pending.popleft()
        for row, written in writes:
            for slot, value in written.items():
                self.slots[slot] = value
                if row.in_air.get(slot) == value:
                    del row.in_air[slot]
        return sampled

    def poison(self, block_ids: Sequence[int]) -> None:
        """Spoil blocks that nobody may read any more."""
        for block_id in block_ids:
            start = block_id * self.block_size
            self.slots[start : start + self.block_size] = [POISON] * self.block_size

    def _compute(self, work: RowWork) -> tuple[_Row, dict[int, int]]:
        row = self.rows[work.row]
        assert len(work.new_block_ids) in (0, len(self.groups))
        for table, block_ids in zip(row.block_tables, work.new_block_ids, strict=False):
            table += self._table(work.row, block_ids)
        written = {}
        for position in range(work.start, work.start + work.num_tokens):
            earlier = [
                [self._read(row, number, p) for p in seen(position, group)] for number, group in enumerate(self.groups)
            ]
            for number, value in enumerate(contents_of(row.token_ids[position], position, row.salt, earlier)):
                slot = self._slot(row, number, position)
                row.in_air[slot] = written[slot] = value
        count = self.num_computed_tokens.get(row.request_id, 0)
        self.num_computed_tokens[row.request_id] = count + work.num_tokens
        return row, written

    def _slot(self, row: _Row, group: int, position: int) -> int:
        index, offset = divmod(position, self.block_size)
        block_id = row.block_tables[group][index]
        assert block_id != NULL_BLOCK or not has_window(self.groups), f"I16: {row.request_id} needs the null block"
        return block_id * self.block_size + offset

    def _read(self, row: _Row, group: int, position: int) -> int:
        slot = self._slot(row, group, position)
        return row.in_air.get(slot, self.slots[slot])

    def _sampled(self, step: Step) -> Sampled:
        rows = []
        prompt_logprobs = {}
        for work in step.work:
            reader = self.rows[work.row]
            end = work.start + work.num_tokens
            if work.samples:
                contents = [
                    self._read(reader, number, position)
                    for number, group in enumerate(self.groups)
                    for position in range(max(0, end - (group.window or end)), end)
                ]
                rows += [self._sample_row(step, row, end, contents) for row in work.samples]
            if work.prompt_logprobs:
                last = min(end + 1, reader.num_prompt_tokens)
                prompt_logprobs[work.row] = tuple(
                    TokenLogprobs(reader.token_ids[position], -float(position), 1)
                    for position in range(work.start + 1, last)
                )
        return Sampled(step.step_id, tuple(rows), prompt_logprobs)

    def _sample_row(self, step: Step, row_number: int, end: int, contents: list[int]) -> SampledRow:
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
