"""The sampler in the compiled library: what `quire.engine.sampler` means, without a sort or tensors on the way.

Both compute in float32, with other exponentials and logarithms: two noisy scores, or a weight and the threshold of a
filter, that differ by rounding alone (1e-5, relative to 1) may be decided the other way. Everything else is equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.engine.messages import Failure, TokenLogprobs
from quire.engine.row_sampling import RowSampling
from quire.engine.sampler import NOT_FINITE, NOTHING_LEFT, Draw, internal_error
from quire.kernels.cpu import sampling
from quire.kernels.cpu.sampling import Sampling

_FAILURES = {
    sampling.NOT_FINITE: NOT_FINITE,
    sampling.NOTHING_LEFT: NOTHING_LEFT,
    sampling.NO_MEMORY: internal_error("sampling was not possible: no memory"),
}


class CompiledSampler:
    """Implements `quire.engine.sampler.Sampler`."""

    def __init__(self, native: Sampling) -> None:
        self._native = native

    def sample(self, logits: Tensor, sources: Sequence[int], rows: Sequence[RowSampling]) -> list[Draw]:
        """One draw for each of `rows`, row i from `logits[sources[i]]` (float32 [R, V], V the ids to choose from).

        An exception in the preparation of one row fails that row alone (`internal_error`).
        """
        logits = _rows(logits)
        first, distance, vocab_size = logits.data_ptr(), 4 * logits.stride(0), logits.shape[1]
        facts: list[int] = []
        adjusted: list[Tensor] = []
        failures: dict[int, Failure] = {}
        for i, row in enumerate(rows):
            address, masked = first + sources[i] * distance, 0
            if row.adjusts:
                scores = self._adjusted(logits[sources[i]], row)
                if isinstance(scores, Failure):
                    failures[i] = scores
                else:
                    adjusted.append(scores)
                    address, masked = scores.data_ptr(), 1
            facts += (address, row.position, masked)
        tokens = self._native.sample(facts, b"".join([row.packed for row in rows]), len(rows), vocab_size)
        draws = [Draw(token) if token >= 0 else Draw(failure=_FAILURES[token]) for token in tokens]
        for i, failure in failures.items():
            draws[i] = Draw(failure=failure)
        asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None and draws[i].failure is None]
        if asked:
            entries = self._entries(
                [first + sources[i] * distance for i in asked],
                [draws[i].token_id for i in asked],
                [rows[i].params.logprobs or 0 for i in asked],
                vocab_size,
            )
            for i, entry in zip(asked, entries, strict=True):
                draws[i] = Draw(draws[i].token_id, entry)
        return draws

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
        """One entry a row of `logits` (float32 [R, V], R of each list): that token's, and the `num_top` most likely."""
        logits = _rows(logits)
        first, distance = logits.data_ptr(), 4 * logits.stride(0)
        addresses = [first + row * distance for row in range(len(token_ids))]
        return self._entries(addresses, token_ids, num_top, logits.shape[1])

    def _adjusted(self, logits: Tensor, row: RowSampling) -> Tensor | Failure:
        """A copy of the logits [V] with the row's penalties and masks."""
        if not self._native.finite(logits):
            return NOT_FINITE
        scores = logits.clone()
        try:
            row.adjust(scores)
        except Exception as error:  # one row's fault must not reach its neighbours
            return internal_error(f"sampling was not possible: {type(error).__name__}")
        return scores

    def _entries(
        self, addresses: Sequence[int], token_ids: Sequence[int], num_top: Sequence[int], vocab_size: int
    ) -> list[TokenLogprobs]:
        widest = min(max(num_top, default=0), vocab_size)
        values, ranks, top_values, top_ids = self._native.logprobs(addresses, token_ids, widest, vocab_size)
        entries = []
        for i, (token_id, value, rank) in enumerate(zip(token_ids, values, ranks, strict=True)):
            top = slice(i * widest, i * widest + min(num_top[i], widest))
            entries.append(TokenLogprobs(token_id, value, rank, tuple(top_ids[top]), tuple(top_values[top])))
        return entries


def _rows(logits: Tensor) -> Tensor:
    """The logits as the library reads them: float32, each row without gaps."""
    if logits.dtype != torch.float32:
        raise TypeError(f"logits are sampled in float32, not {logits.dtype}")
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()
