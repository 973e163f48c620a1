"""A step: which sequences compute which tokens into which blocks. Values only, encodable by msgspec.

The scheduler freezes a `Step`; the runner executes it and answers with `Sampled`. The runner keeps, for each row it has
been told of, the row's token ids, block table and sampling parameters; a Step carries only what is new. Because a Step
is plain values, a test runs the runner on its decoded bytes, and replay or tensor parallelism can send it elsewhere.

The runner's order of work within one step:
  1. `released_rows` are forgotten;
  2. `new_rows` are created;
  3. `block_copies` are done, on every layer, whole blocks;
  4. for each `RowWork`: append `new_block_ids` to the row's block tables, one for each cache group, then compute the
     tokens [start, start + num_tokens), each layer writing keys and values through its group's table; a token id that
     was sampled by an earlier step is the runner's own (it appends what it samples to the row);
  5. for each work with `samples` not empty: the logits of the work's last token give one next token for each of the
     rows named there (the row itself, and at the end of a shared prompt its sibling choices).

What the scheduler promises: a row is released only after every step that names it has been collected, and may begin
anew in the very step that releases it. The first work of a row brings its whole block table; that of a forked sibling
comes in a later step than the one in which it samples its first token, with the copy of its partial block. After a step
whose `forward` raised, its rows are released although the runner may never have created them: releasing an unknown row,
and a `NewRow` over a row that exists, are no errors.

A block that a group's window has slid past belongs to others from the next step on, and nobody tells the runner: it
knows the windows, and reads the null block instead.
"""

from __future__ import annotations

import msgspec

from quire.engine.messages import Failure, TokenLogprobs
from quire.engine.sampling_params import SamplingParams


class NewRow(msgspec.Struct, frozen=True, array_like=True):
    """A row begins: a new sequence, a forked choice, or one that returns after preemption."""

    row: int
    """0 <= row < max_num_seqs; not in use before."""
    request_id: str
    choice: int
    params: SamplingParams
    token_ids: bytes
    """All tokens known so far (prompt, then output), int32."""
    num_prompt_tokens: int
    """The first of `token_ids` that are prompt; the rest count as output for penalties and min_tokens."""


class RowWork(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one row in one step."""

    row: int
    start: int
    """Position of the first token computed now; everything before it is in the row's blocks already."""
    num_tokens: int
    new_block_ids: tuple[tuple[int, ...], ...]
    """Appended to the row's block tables before anything is computed: for each cache group equally many, or ()."""
    samples: tuple[int, ...]
    """Rows that sample from the logits of this work's last token; empty in the middle of a prompt."""
    prompt_logprobs: bool = False
    """Also report the log probabilities of prompt tokens start + 1 .. start + num_tokens (those within the prompt)."""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step; `step_id` counts from 1."""

    step_id: int
    work: tuple[RowWork, ...]
    new_rows: tuple[NewRow, ...] = ()
    block_copies: tuple[tuple[int, int], ...] = ()
    """(source, target) block ids."""
    released_rows: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step."""
        return sum(work.num_tokens for work in self.work)


class SampledRow(msgspec.Struct, frozen=True, array_like=True):
    """What a step gave one sampling row: 0..k+1 tokens (one, without speculation), or a failure of that row alone."""

    row: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    failure: Failure | None = None
    """Non-finite logits (`model_numerics`), no token left to choose (`no_valid_token`), or an exception in this row's
    preparation (`internal_error`). Steps launched before the scheduler learns of it still name the row; their answers
    for it are dropped, so a runner may give the same failure again, or anything."""


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    """The result of a step, one entry for each row in `RowWork.samples`, in their order."""

    step_id: int
    rows: tuple[SampledRow, ...]
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
    """For works that asked: row -> entries for prompt positions start + 1 .. (in order), appended by the scheduler."""
    failed_rows: dict[int, Failure] = {}
    """Rows whose forward pass failed although they sample nothing in this step."""
