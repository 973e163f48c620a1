"""The runner on a device that computes behind the host's back: nothing in a step waits for it but `collect`.

    forward(step)          rows come and go; one copy sends what is new; the forward pass is enqueued
    sample(step, masks)    the choice of tokens is enqueued, and the copy of the results into pinned memory
    collect()              waits for the mark behind the oldest step's results, and reads them

The next step may be launched before that: its input ids are the device's own last samples (`DeviceState`). Decode steps
are launched as recordings (`DecodeGraphs`), all others kernel by kernel (`EagerPass`).

Everything is enqueued in one stream, so what a step writes is there for the next one, and a block that the scheduler
hands out again after it applied a step is written after that step has read it. As in `quire.engine.runner`, every fault
is one request's; one that is found on the device is reported with the step's results, and until then the row goes on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from quire.engine.cache_groups import CacheGroup
from quire.engine.decode_graphs import DecodeGraphs
from quire.engine.device import Device, Mark
from quire.engine.device_results import Arrival, cut
from quire.engine.device_rows import DeviceRow, prepare
from quire.engine.device_sampling import PromptScores, Sampling, SamplingKernels
from quire.engine.device_state import PARAMETER_WORDS, DeviceState
from quire.engine.device_update import NewBlocks, Update
from quire.engine.eager_pass import EagerPass
from quire.engine.kv_cache import KVCache
from quire.engine.messages import Failure, TokenLogprobs
from quire.engine.packed_words import Int32Array, Staging, Words
from quire.engine.runner_seams import BlockCopier, Model, StepWatch, Unwatched, fault
from quire.engine.sampler import NOT_FINITE, NOTHING_LEFT
from quire.engine.step import NewRow, RowWork, Sampled, SampledRow, Step
from quire.kernels import fused

DEPTH = 2
"""Steps in flight: one that computes and one that is launched meanwhile."""


_FAILURES = {fused.NOT_FINITE: NOT_FINITE, fused.NOTHING_LEFT: NOTHING_LEFT}


@runtime_checkable
class DeviceKernels(BlockCopier, SamplingKernels, Protocol):
    """The operations that this runner itself calls, of the backend `name`."""

    name: str


@dataclass
class _Launch:
    """A step between `forward` and `collect`."""

    step: Step
    works: list[RowWork] = field(default_factory=list)
    """Those that are computed."""
    rows: list[DeviceRow] = field(default_factory=list)
    """Theirs."""
    failures: dict[int, Failure] = field(default_factory=dict)
    """Row -> why it computes or samples nothing. Work that has been enqueued may add to them."""
    graph_size: int | None = None
    """The bucket, when it is a recorded step."""
    hidden: Tensor | None = None
    """Set by work that has been enqueued."""
    sampling: Sampling | None = None
    prompt_scores: list[PromptScores] = field(default_factory=list)
    arrival: Arrival | None = None
    prompt_arrivals: dict[int, Arrival] = field(default_factory=dict)
    """Of `prompt_scores`, by row."""
    mark: Mark | None = None


class DeviceRunner:
    """Implements `quire.engine.core.Runner` on a `Device`.

    `vocab_size` counts the columns that may be sampled, `max_model_len` the longest sequence, `max_num_batched_tokens`
    the largest step. `graph_sizes`: the buckets of decode steps that are recorded; none where kernels cannot be.
    """

    def __init__(
        self,
        model: Model,
        kernels: DeviceKernels,
        cache: KVCache,
        device: Device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        block_size: int,
        vocab_size: int,
        graph_sizes: Sequence[int] = (),
        watch: StepWatch | None = None,
    ) -> None:
        self._model, self._kernels, self._cache, self._device = model, kernels, cache, device
        self._max_model_len, self._vocab_size = max_model_len, vocab_size
        self._watch = watch or Unwatched()
        self._state = DeviceState(max_num_seqs, max_model_len, block_size, cache.groups, device.device)
        words_a_row = PARAMETER_WORDS + 16 + 4 * len(cache.groups)
        self._staging = Staging(device, 4 * max_num_batched_tokens + words_a_row * max_num_seqs + 1024, DEPTH)
        self._graphs: DecodeGraphs | None = None
        if graph_sizes:
            self._graphs = DecodeGraphs(
                device, graph_sizes, model, kernels, cache, self._state, self._staging.target, vocab_size
            )
        self._rows: dict[int, DeviceRow] = {}
        self._computed: deque[_Launch] = deque()
        self._sampled: deque[_Launch] = deque()

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The cache groups: a `RowWork` names blocks for each of them."""
        return self._cache.groups

    def forward(self, step: Step) -> None:
        """Send what is new, then enqueue the forward pass of every work's tokens."""
        for row in step.released_rows:
            self._rows.pop(row, None)  # unknown when the step that was to create it failed as a whole
        tokens = {new_row.row: self._create(new_row) for new_row in step.new_rows}
        self._watch.begin_step([self._rows[work.row].request_id for work in step.work])
        launch = _Launch(step)
        blocks = [new for work in step.work if (new := self._prepare(work, launch)) is not None]
        words = self._staging.begin()
        eager = self._put_works(launch, words)  # first: recordings read them at the buffer's beginning
        update = Update(step, tokens, blocks, self._state, words)
        self._put_sampling(launch, eager, words)
        self._staging.send(words)
        if not update.is_empty:
            self._device.enqueue(lambda: update.apply(self._cache, self._kernels))
        if eager is not None:
            self._device.enqueue(lambda: self._compute(launch, eager))
        elif launch.graph_size is not None:
            self._device.enqueue(partial(self._recordings.compute, launch.graph_size))
            self._watch.tick()
        self._computed.append(launch)

    def sample(self, step: Step, masks: None = None) -> None:
        """Enqueue the choice of one token for each row that samples, and of prompt log probabilities asked for."""
        launch = self._computed.popleft()
        if launch.step.step_id != step.step_id:
            raise ValueError(f"step {step.step_id} is sampled after the forward pass of step {launch.step.step_id}")
        if launch.sampling is not None:
            launch.arrival = Arrival(self._device, len(launch.sampling.rows), launch.sampling.num_top)
            for row in launch.sampling.rows:
                self._rows[row].num_tokens += 1
        for scores in launch.prompt_scores:
            launch.prompt_arrivals[scores.row] = Arrival(self._device, scores.num_rows, scores.num_top)
        if launch.sampling is not None or launch.prompt_scores:
            self._device.enqueue(lambda: self._choose(launch))
        launch.mark = self._device.mark()
        self._sampled.append(launch)

    def collect(self) -> Sampled:
        """Wait for the oldest result; raises IndexError when no step was sampled."""
        launch = self._sampled.popleft()
        assert launch.mark is not None
        launch.mark.wait()
        prompt_logprobs = self._prompt_logprobs(launch)
        drawn = _drawn(launch)
        rows, failures = [], launch.failures
        for work in launch.step.work:
            for row in work.samples:
                failure = failures.get(work.row) or failures.get(row)
                rows.append(SampledRow(row, (), failure=failure) if failure is not None else drawn[row])
        sampling = {row.row for row in rows}
        failed = {row: failure for row, failure in failures.items() if row not in sampling}
        return Sampled(launch.step.step_id, tuple(rows), prompt_logprobs, failed)

    # --- on the host ---

    @property
    def _recordings(self) -> DecodeGraphs:
        assert self._graphs is not None
        return self._graphs

    def _create(self, new_row: NewRow) -> Int32Array:
        """The row's first token ids; none if it has failed."""
        row = self._rows[new_row.row] = DeviceRow(new_row.request_id, new_row.params, new_row.num_prompt_tokens)
        try:
            return prepare(row, new_row, self._vocab_size, self._max_model_len)
        except Exception as error:
            row.failure = fault("could not be prepared", error)
            return np.zeros(0, dtype=np.int32)

    def _prepare(self, work: RowWork, launch: _Launch) -> NewBlocks | None:
        """Take the work into the launch, or its row has failed; the blocks that it brings."""
        row, new = self._rows[work.row], None
        try:
            if row.failure is None:
                if work.new_block_ids:
                    new = self._append_blocks(row, work)
                row.check(work, self._state.block_size)
        except Exception as error:
            row.failure = fault("does not fit its row", error)
        if row.failure is None:
            launch.works.append(work)
            launch.rows.append(row)
            return new
        launch.failures[work.row] = row.failure
        return None

    def _append_blocks(self, row: DeviceRow, work: RowWork) -> NewBlocks:
        first, ids = row.num_blocks, work.new_block_ids
        end = first + len(ids[0])
        if len(ids) != len(self.groups) or end > self._state.max_blocks:
            raise ValueError(f"block ids for {len(ids)} cache groups up to entry {end}")
        row.num_blocks = end
        return work.row, first, ids

    def _put_works(self, launch: _Launch, words: Words) -> EagerPass | None:
        """Decide how the works are computed, and put what that reads; None when they are a recorded step, or none."""
        works = launch.works
        if not works:
            return None
        plain = all(work.samples == (work.row,) and work.num_tokens == 1 and not work.prompt_logprobs for work in works)
        size = self._graphs.size_of(len(works)) if plain and self._graphs is not None else None
        if size is None:
            return EagerPass(works, self._state.block_size, words)
        launch.graph_size = size
        words.put(self._recordings.inputs(size, [work.row for work in works], [work.start for work in works]))
        return None

    def _put_sampling(self, launch: _Launch, eager: EagerPass | None, words: Words) -> None:
        rows, sources = [], []
        for index, work in enumerate(launch.works):
            source = index if eager is None else eager.query_start[index + 1] - 1
            for number in work.samples:
                row = self._rows[number]
                if row.failure is None:
                    rows.append((number, row))
                    sources.append(source)
                else:
                    launch.failures[number] = row.failure
            if work.prompt_logprobs and eager is not None:
                scores = PromptScores(work, launch.rows[index], eager.query_start[index], self._vocab_size)
                if scores.num_rows > 0:
                    launch.prompt_scores.append(scores)
        if rows:
            launch.sampling = Sampling(rows, sources, self._vocab_size, words, recorded=launch.graph_size is not None)

    # --- enqueued: on the device, maybe later ---

    def _compute(self, launch: _Launch, eager: EagerPass) -> None:
        def blame(index: int, error: Exception) -> None:
            failure = fault("could not be computed", error)
            launch.rows[index].failure = launch.failures[launch.works[index].row] = failure

        launch.hidden = eager.compute(self._model, self._cache, self._state, self._watch.tick, blame)

    def _choose(self, launch: _Launch) -> None:
        sampling, hidden = launch.sampling, launch.hidden
        for scores in launch.prompt_scores:
            if hidden is None:
                break
            try:
                found = scores.compute(hidden, self._model, self._state, self._kernels)
                launch.prompt_arrivals[scores.row].fill(found)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                launch.failures.setdefault(scores.row, fault("has no prompt log probabilities", error))
        if sampling is None or launch.arrival is None:
            return
        try:
            launch.arrival.fill(self._draw(launch, sampling))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = fault("could not be sampled", error)
            for row in sampling.rows:
                launch.failures.setdefault(row, failure)

    def _draw(self, launch: _Launch, sampling: Sampling) -> Tensor:
        """`result_words` of the rows that sample."""
        num_rows = len(sampling.rows)
        if launch.graph_size is not None:
            if sampling.is_plain:
                self._recordings.choose(launch.graph_size)
                return self._recordings.results[:num_rows]
            logits = self._recordings.logits[:num_rows]
        elif launch.hidden is not None:
            logits = sampling.logits(launch.hidden, self._model, self._vocab_size)
        else:
            raise RuntimeError("nothing was computed to sample from")
        return sampling.draw(logits, self._state, self._kernels)

    # --- collected ---

    def _prompt_logprobs(self, launch: _Launch) -> dict[int, tuple[TokenLogprobs, ...]]:
        found: dict[int, tuple[TokenLogprobs, ...]] = {}
        rows = {work.row: row for work, row in zip(launch.works, launch.rows, strict=True)}
        for number, arrival in launch.prompt_arrivals.items():
            if number in launch.failures:
                continue
            entries = arrival.logprobs()
            if all(math.isfinite(entry.logprob) for entry in entries):
                found[number] = tuple(entries)
            else:
                launch.failures[number] = rows[number].failure = NOT_FINITE
        return found


def _drawn(launch: _Launch) -> dict[int, SampledRow]:
    """What each row that sampled got."""
    if launch.sampling is None or launch.arrival is None:
        return {}
    tokens = launch.arrival.tokens()
    entries = launch.arrival.logprobs() if launch.sampling.num_top is not None else []
    drawn = {}
    for index, (row, token) in enumerate(zip(launch.sampling.rows, tokens, strict=True)):
        asked = launch.sampling.asked[index]
        if token < 0:
            drawn[row] = SampledRow(row, (), failure=_FAILURES[token])
        else:
            drawn[row] = SampledRow(row, (token,), None if asked is None else (cut(entries[index], asked),))
    return drawn
