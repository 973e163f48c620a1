"""A forward pass of works of any length, kernel by kernel: prompts, and what is mixed with them.

Where it raises, halves are computed again until one work alone is to blame: writing the same keys and values twice
changes nothing. What the works read is cut out of the words that were sent for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quire.engine.device_state import DeviceState
from quire.engine.kv_cache import KVCache
from quire.engine.packed_words import Words
from quire.engine.runner_seams import Model
from quire.engine.step import RowWork
from quire.engine.step_input import lay_out

Blame = Callable[[int, Exception], None]


class EagerPass:
    """The works of one step. Made on the host; `compute` launches the kernels."""

    def __init__(self, works: Sequence[RowWork], block_size: int, words: Words) -> None:
        layout = lay_out(works)
        self._num_works, self._block_size = len(works), block_size
        self.query_start: list[int] = layout.query_start.tolist()
        """Work i has the hidden states query_start[i] .. query_start[i + 1] - 1."""
        self._ends: list[int] = layout.ends.tolist()
        self._rows, self._starts = words.put(layout.rows), words.put(layout.starts)
        self._seq_lens, self._query_start_loc = words.put(layout.ends), words.put(layout.query_start)
        self._token_rows, self._positions = words.put(layout.token_rows), words.put(layout.positions)

    def compute(
        self, model: Model, cache: KVCache, state: DeviceState, on_layer: Callable[[], None], blame: Blame
    ) -> Tensor | None:
        """Hidden states [T, H] of all works, in their order; zeros for those that are to blame, None if all are.

        `blame(i, error)` is told of each of those.
        """
        parts: list[tuple[int, Tensor]] = []

        def forward(first: int, last: int) -> None:
            try:
                hidden = self._forward(first, last, model, cache, state, on_layer)
            except torch.AcceleratorError:
                raise  # the device is lost, whoever computes
            except Exception as error:
                if last - first == 1:
                    blame(first, error)
                    return
            else:
                parts.append((self.query_start[first], hidden))
                return
            middle = (first + last) // 2
            forward(first, middle)
            forward(middle, last)

        forward(0, self._num_works)
        if not parts or len(parts[0][1]) == self.query_start[-1]:
            return parts[0][1] if parts else None
        whole = parts[0][1].new_zeros((self.query_start[-1], parts[0][1].shape[1]))
        for start, hidden in parts:
            whole[start : start + len(hidden)] = hidden
        return whole

    def _forward(
        self,
        first: int,
        last: int,
        model: Model,
        cache: KVCache,
        state: DeviceState,
        on_layer: Callable[[], None],
    ) -> Tensor:
        """Hidden states of the works first .. last - 1."""
        begin, end = self.query_start[first], self.query_start[last]
        token_rows, positions = self._token_rows()[begin:end].long(), self._positions()[begin:end].long()
        seq_lens = self._ends[first:last]
        plans = state.plans(
            self._rows()[first:last].long(),
            self._starts()[first:last].long(),
            self._seq_lens()[first:last],
            self._query_start_loc()[first : last + 1] - begin,
            state.slots(token_rows, positions),
            (tuple(start - begin for start in self.query_start[first : last + 1]), tuple(seq_lens)),
            -(-max(seq_lens) // self._block_size),
        )
        input_ids = state.tokens(token_rows, positions)
        return model.forward(input_ids, positions, cache.by_layer(plans), cache.layers, on_layer)
