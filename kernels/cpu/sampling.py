"""Tokens and log probabilities from rows of logits, in the compiled library: no sort, no tensor on the way.

Rows are named by their addresses, so that rows of one logits tensor and copies of single rows go through one call; the
caller keeps the tensors alive. `quire.engine.compiled_sampler` gives this its meaning.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from ctypes import c_int, c_int64, c_void_p
from struct import Struct

from torch import Tensor

from quire.kernels.cpu.library import Library

NOT_FINITE, NOTHING_LEFT, NO_MEMORY = -1, -2, -3
"""Why a row has no token."""
_PARAMETERS = Struct("=Qqqddd")


def pack_parameters(seed: int, choice: int, *, temperature: float, top_k: int, top_p: float, min_p: float) -> bytes:
    """What one row's token depends on beside its logits and position, as `Sampling.sample` reads it."""
    return _PARAMETERS.pack(seed & (1 << 64) - 1, choice, top_k, temperature, top_p, min_p)


class Sampling:
    """The functions of `native/sampling.c` and `native/logprobs.c`."""

    def __init__(self, library: Library) -> None:
        p, n = c_void_p, c_int64
        self._sample = library.function("sample", (n, n, p, p, p))
        self._finite = library.function("finite", (p, n), c_int)
        self._logprobs = library.function("logprobs", (n, n, p, p, p, p, n, p, p))

    def sample(self, facts: Iterable[int], parameters: bytes, num_rows: int, vocab_size: int) -> list[int]:
        """A token for each row, or NOT_FINITE, NOTHING_LEFT, NO_MEMORY.

        `facts`, three a row: the address of its `vocab_size` float32 logits, the position that the token will have, and
        1 where columns were masked with -inf (then all was finite before), else 0. `parameters`: `pack_parameters` of
        each row, end to end.
        """
        numbers, tokens = array("q", facts), array("q", bytes(8 * num_rows))
        self._sample(num_rows, vocab_size, numbers.buffer_info()[0], parameters, tokens.buffer_info()[0])
        return tokens.tolist()

    def finite(self, row: Tensor) -> bool:
        """Whether the float32 row [V], contiguous, has neither NaN nor infinity."""
        return bool(self._finite(row.data_ptr(), row.shape[0]))

    def logprobs(
        self, addresses: Sequence[int], token_ids: Sequence[int], num_top: int, vocab_size: int
    ) -> tuple[list[float], list[int], list[float], list[int]]:
        """Of each row: its token's log probability and rank; then `num_top` a row, values and ids of the most likely.

        Rank 1 is the most likely; equals share the better rank, and stand in the order of their ids.
        """
        rows = len(addresses)
        places, tokens = array("q", addresses), array("q", token_ids)
        values, ranks = array("f", bytes(4 * rows)), array("q", bytes(8 * rows))
        top_values, top_ids = array("f", bytes(4 * rows * num_top)), array("q", bytes(8 * rows * num_top))
        self._logprobs(
            rows,
            vocab_size,
            places.buffer_info()[0],
            tokens.buffer_info()[0],
            values.buffer_info()[0],
            ranks.buffer_info()[0],
            num_top,
            top_values.buffer_info()[0],
            top_ids.buffer_info()[0],
        )
        return values.tolist(), ranks.tolist(), top_values.tolist(), top_ids.tolist()
