"""The runner: executes a `Step` on the model and answers with `Sampled`.

    forward(step)          rows come and go, blocks are copied, the model computes hidden states
    sample(step, masks)    logits of the rows that sample, one token each, appended to the rows
    collect()              the result of the oldest step that was sampled

Every fault is one request's: a row that cannot be prepared, a row whose forward pass raises (found by computing halves
again: writing the same keys and values twice changes nothing), a row whose logits are no numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.engine.cache_groups import CacheGroup
from quire.engine.kv_cache import KVCache
from quire.engine.logprobs import slice_rows
from quire.engine.messages import Failure, TokenLogprobs
from quire.engine.row_sampling import RowSampling
from quire.engine.runner_seams import BlockCopier, Model, StepWatch, Unwatched, fault
from quire.engine.sampler import NOT_FINITE, Draw, Sampler, TorchSampler
from quire.engine.step import NewRow, RowWork, Sampled, SampledRow, Step
from quire.engine.step_input import RowTable


@dataclass
class _Row:
    """One row: whose it is, and how it samples. `failure` is why it can do neither."""

    request_id: str
    num_prompt_tokens: int
    sampling: RowSampling | None = None
    num_prompt_logprobs: int = 0
    failure: Failure | None = None


@dataclass
class _Computed:
    """What `forward` left for `sample`: hidden states of the works that went through, in one or more parts."""

    step_id: int
    parts: list[Tensor] = field(default_factory=list)
    """Hidden states [tokens, H]."""
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Row -> where its work's tokens lie in the parts, laid end to end."""
    failures: dict[int, Failure] = field(default_factory=dict)

    def add(self, works: Sequence[RowWork], hidden: Tensor, starts: Sequence[int]) -> None:
        """The hidden states of `works`; work i's begin at starts[i]."""
        offset = sum(len(part) for part in self.parts)
        self.parts.append(hidden)
        for work, start in zip(works, starts, strict=False):
            self.spans[work.row] = (offset + start, offset + start + work.num_tokens)

    def hidden(self) -> Tensor:
        """All parts end to end; call only when there is one."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        return self.parts[0]


class ModelRunner:
    """Implements `quire.engine.core.Runner` in this process, on one device.

    `vocab_size` counts the columns that may be sampled; `max_model_len` the longest sequence. `sampler`: PyTorch's
    unless another one is given.
    """

    def __init__(
        self,
        model: Model,
        kernels: BlockCopier,
        cache: KVCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        vocab_size: int,
        watch: StepWatch | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._model, self._kernels, self._cache = model, kernels, cache
        self._sampler = sampler or TorchSampler()
        self._vocab_size = vocab_size
        self._table = RowTable(max_num_seqs, max_model_len, block_size, cache.groups)
        self._rows: dict[int, _Row] = {}
        self._watch = watch or Unwatched()
        self._computed: deque[_Computed] = deque()
        self._sampled: deque[Sampled] = deque()

    @torch.inference_mode()
    def forward(self, step: Step) -> None:
        """Bring rows and blocks up to date, then compute hidden states of every work's tokens."""
        for row in step.released_rows:
            self._rows.pop(row, None)  # unknown when the step that was to create it failed as a whole
        for new_row in step.new_rows:
            self._rows[new_row.row] = self._create(new_row)
        self._watch.begin_step([self._rows[work.row].request_id for work in step.work])
        if step.block_copies:
            pairs = self._cache.copy_pairs(step.block_copies)
            for keys, values in self._cache.stripes:
                self._kernels.copy_blocks(keys, values, pairs)
        computed = _Computed(step.step_id)
        ready = [work for work in step.work if self._prepare(work, computed)]
        if ready:
            self._compute(ready, computed)
        self._computed.append(computed)

    @torch.inference_mode()
    def sample(self, step: Step, masks: None = None) -> None:
        """One token for each row that samples, and the prompt log probabilities that were asked for."""
        computed = self._computed.popleft()
        if computed.step_id != step.step_id:
            raise ValueError(f"step {step.step_id} is sampled after the forward pass of step {computed.step_id}")
        prompt_logprobs = self._all_prompt_logprobs(step, computed)
        rows = self._sample_rows(step, computed)
        for sampled in rows:
            for token_id in sampled.token_ids:
                self._append(sampled.row, token_id)
        sampling = {row for work in step.work for row in work.samples}
        failed = {row: failure for row, failure in computed.failures.items() if row not in sampling}
        self._sampled.append(Sampled(step.step_id, tuple(rows), prompt_logprobs, failed))

    def collect(self) -> Sampled:
        """The oldest result; raises IndexError when no step was sampled."""
        return self._sampled.popleft()

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The cache groups: a `RowWork` names blocks for each of them."""
        return self._cache.groups

    # --- rows ---

    def _create(self, new_row: NewRow) -> _Row:
        row = _Row(new_row.request_id, new_row.num_prompt_tokens)
        try:
            self._table.create(new_row.row, new_row.token_ids)
            row.sampling = RowSampling(
                new_row.params,
                new_row.choice,
                self._table.tokens(new_row.row),
                new_row.num_prompt_tokens,
                self._vocab_size,
            )
            row.num_prompt_logprobs = new_row.params.prompt_logprobs or 0
        except Exception as error:
            row.failure = fault("could not be prepared", error)
        return row

    def _prepare(self, work: RowWork, computed: _Computed) -> bool:
        """Whether the work can be computed; if not, its row has failed."""
        row = self._rows[work.row]
        try:
            if row.failure is None:
                self._table.append_blocks(work.row, work.new_block_ids)
                self._table.check(work)
        except Exception as error:
            row.failure = fault("does not fit its row", error)
        if row.failure is not None:
            computed.failures[work.row] = row.failure
        return row.failure is None

    def _append(self, row: int, token_id: int) -> None:
        self._table.append_token(row, token_id)
        sampling = self._rows[row].sampling
        assert sampling is not None
        sampling.append(token_id)

    # --- the model ---

    def _compute(self, works: Sequence[RowWork], computed: _Computed) -> None:
        """Hidden states of `works`; when that raises, of each half, until one work alone is to blame."""
        try:
            step_input = self._table.step_input(works)
            plans = self._cache.by_layer(step_input.plans)
            hidden = self._model.forward(
                step_input.input_ids, step_input.positions, plans, self._cache.layers, self._watch.tick
            )
        except Exception as error:
            if len(works) == 1:
                failure = fault("could not be computed", error)
                self._rows[works[0].row].failure = failure
                computed.failures[works[0].row] = failure
                return
        else:
            computed.add(works, hidden, step_input.plans[0].query_start_list)
            return
        half = len(works) // 2
        self._compute(works[:half], computed)
        self._compute(works[half:], computed)

    def _sample_rows(self, step: Step, computed: _Computed) -> list[SampledRow]:
        """One entry for each of the rows that sample, in the step's order."""
        sampled: dict[int, SampledRow] = {}
        sources: list[tuple[int, list[int]]] = []
        for work in step.work:
            drawing = []
            for row in work.samples:
                failure = computed.failures.get(work.row) or self._rows[row].failure
                if failure is not None:
                    sampled[row] = SampledRow(row, (), failure=failure)
                else:
                    drawing.append(row)
            if drawing:
                sources.append((computed.spans[work.row][1] - 1, drawing))
        per_slice = slice_rows(self._vocab_size)
        for first in range(0, len(sources), per_slice):
            self._sample_slice(computed.hidden(), sources[first : first + per_slice], sampled)
        return [sampled[row] for work in step.work for row in work.samples]

    def _sample_slice(
        self, hidden: Tensor, sources: Sequence[tuple[int, list[int]]], sampled: dict[int, SampledRow]
    ) -> None:
        """Draw for `sources` (index into hidden [T, H], rows that draw from there); halved when that raises."""
        rows = [row for _, drawing in sources for row in drawing]
        try:
            logits = self._logits(hidden[[position for position, _ in sources]])
            index = [i for i, (_, drawing) in enumerate(sources) for _ in drawing]
            draws = self._sampler.sample(logits, index, [self._sampling(row) for row in rows])
        except Exception as error:
            if len(sources) > 1:
                half = len(sources) // 2
                self._sample_slice(hidden, sources[:half], sampled)
                self._sample_slice(hidden, sources[half:], sampled)
                return
            draws = [Draw(failure=fault("could not be sampled", error))] * len(rows)
        for row, draw in zip(rows, draws, strict=True):
            logprobs = (draw.logprobs,) if draw.logprobs is not None else None
            token_ids = (draw.token_id,) if draw.failure is None else ()
            sampled[row] = SampledRow(row, token_ids, logprobs, draw.failure)

    def _all_prompt_logprobs(self, step: Step, computed: _Computed) -> dict[int, tuple[TokenLogprobs, ...]]:
        found: dict[int, tuple[TokenLogprobs, ...]] = {}
        for work in step.work:
            if work.prompt_logprobs and work.row in computed.spans:
                failure = None
                try:
                    entries = self._prompt_logprobs(work, computed)
                    if not all(math.isfinite(entry.logprob) for entry in entries):
                        failure = NOT_FINITE
                except Exception as error:
                    failure = fault("has no prompt log probabilities", error)
                if failure is None:
                    found[work.row] = entries
                else:
                    computed.failures[work.row] = self._rows[work.row].failure = failure
        return found

    def _prompt_logprobs(self, work: RowWork, computed: _Computed) -> tuple[TokenLogprobs, ...]:
        """Entries for the prompt positions start + 1 .. start + num_tokens, as far as the prompt goes."""
        row = self._rows[work.row]
        begin, _ = computed.spans[work.row]
        stop = min(work.start + work.num_tokens, row.num_prompt_tokens - 1) + 1
        targets = self._table.tokens(work.row, work.start + 1, stop).tolist()
        entries: list[TokenLogprobs] = []
        per_slice = slice_rows(self._vocab_size)
        for first in range(0, len(targets), per_slice):
            some = targets[first : first + per_slice]
            logits = self._logits(computed.hidden()[begin + first : begin + first + len(some)])
            entries += self._sampler.token_logprobs(logits, some, [row.num_prompt_logprobs] * len(some))
        return tuple(entries)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)[:, : self._vocab_size]

    def _sampling(self, row: int) -> RowSampling:
        sampling = self._rows[row].sampling
        assert sampling is not None
        return sampling
