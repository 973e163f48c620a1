"""Decode steps as recordings: every kernel of a step in which each sequence computes one token, in two launches.

There is a recording for each bucket, a number of sequences; a step takes the smallest bucket that has room, and pads
it. What differs from step to step is read from tensors that stay where they are: the first words that the host sends
(the bucket's rows, then the positions of their tokens; -1 for padding) and the device's state. The first recording ends
with logits, the second chooses and appends tokens: rows that want more than a plain choice are sampled between them,
kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from quire.engine.device import Device, Work
from quire.engine.device_sampling import SamplingKernels
from quire.engine.device_state import DeviceState
from quire.engine.kv_cache import KVCache
from quire.engine.packed_words import Int32Array
from quire.engine.runner_seams import Model

MOST_RECORDED = 512
"""Sequences of the largest bucket; more decode kernel by kernel."""


def buckets(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then every eighth; the last one holds `max_num_seqs`, if that is at most `MOST_RECORDED`."""
    most = min(max_num_seqs, MOST_RECORDED)
    sizes = [size for size in (1, 2, 4) if size < most] + list(range(8, most, 8))
    return (*sizes, most)


class DecodeGraphs:
    """The recordings of all buckets; making it records them, the largest first, so that the others fit its memory."""

    def __init__(
        self,
        device: Device,
        sizes: Sequence[int],
        model: Model,
        kernels: SamplingKernels,
        cache: KVCache,
        state: DeviceState,
        words: Tensor,
        vocab_size: int,
    ) -> None:
        """`words`: the device's buffer of `quire.engine.packed_words.Staging`."""
        self._model, self._kernels, self._cache, self._state, self._words = model, kernels, cache, state, words
        self.sizes, self._vocab_size = tuple(sorted(sizes)), vocab_size
        most = self.sizes[-1]
        self.logits = torch.zeros((most, vocab_size), device=device.device)
        """Of the last step, float32 [largest bucket, V]."""
        self.results = torch.zeros((most, 1), dtype=torch.int32, device=device.device)
        """What `choose` left for the host."""
        self._query_start_loc = torch.arange(most + 1, dtype=torch.int32, device=device.device)
        self._unmasked = torch.zeros(most, dtype=torch.bool, device=device.device)
        self._compute: dict[int, Work] = {}
        self._choose: dict[int, Work] = {}
        for size in reversed(self.sizes):
            words[:size], words[size : 2 * size] = state.padding_row, -1
            self._compute[size] = device.capture(partial(self._record_compute, size))
            self._choose[size] = device.capture(partial(self._record_choose, size))

    def size_of(self, num_works: int) -> int | None:
        """The bucket of a step; None when there are too many works."""
        return next((size for size in self.sizes if size >= num_works), None)

    def inputs(self, size: int, rows: Sequence[int], positions: Sequence[int]) -> Int32Array:
        """The first words of a step, padded: int32 [2 * size]."""
        missing = size - len(rows)
        words = [*rows, *[self._state.padding_row] * missing, *positions, *[-1] * missing]
        return np.array(words, dtype=np.int32)

    def compute(self, size: int) -> None:
        """Launch the forward pass of a bucket; `logits` has the result."""
        self._compute[size]()

    def choose(self, size: int) -> None:
        """Launch the plain choice of a bucket; `results` has it, and the rows have a token more."""
        self._choose[size]()

    def _inputs(self, size: int) -> tuple[Tensor, Tensor]:
        return self._words[:size].long(), self._words[size : 2 * size].long()

    def _record_compute(self, size: int) -> None:
        rows, positions = self._inputs(size)
        at = positions.clamp(min=0)
        state, query_starts = self._state, tuple(range(size + 1))
        plans = state.plans(
            rows,
            at,
            (positions + 1).int(),
            self._query_start_loc[: size + 1],
            state.slots(rows, positions),
            (query_starts, ()),
            state.max_blocks,
        )
        hidden = self._model.forward(
            state.tokens(rows, at), at, self._cache.by_layer(plans), self._cache.layers, _nobody_watches
        )
        self.logits[:size].copy_(self._model.logits(hidden)[:, : self._vocab_size])

    def _record_choose(self, size: int) -> None:
        rows, positions = self._inputs(size)
        following, state = positions + 1, self._state
        sampling = state.parameters(rows).sampling(following, self._unmasked[:size])
        tokens = self._kernels.sample(self.logits[:size], sampling)
        state.append(rows, following, tokens)
        self.results[:size].copy_(tokens.unsqueeze(1))


def _nobody_watches() -> None:
    """What is recorded computes no layer."""
