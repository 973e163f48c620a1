"""The results of a step on their way back: copied into pinned memory by the device, read when their mark has passed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quire.engine.device import Device
from quire.engine.messages import TokenLogprobs
from quire.kernels.fused import LogprobTensors


def result_words(tokens: Tensor, found: LogprobTensors | None) -> Tensor:
    """What the host reads of R rows, int32 [R, K]: token; with log probabilities value, rank, top values, top ids."""
    columns = [tokens.int().unsqueeze(1)]
    if found is not None:
        columns += [found.values.view(torch.int32).unsqueeze(1), found.ranks.int().unsqueeze(1)]
        columns += [found.top_values.view(torch.int32), found.top_ids.int()]
    return torch.cat(columns, dim=1)


class Arrival:
    """`result_words` of `num_rows` rows; `num_top` None: tokens alone."""

    def __init__(self, device: Device, num_rows: int, num_top: int | None) -> None:
        self._num_top = num_top
        self._num_columns = 1 if num_top is None else 3 + 2 * num_top
        self._pinned = device.pinned(num_rows * self._num_columns)

    def fill(self, words: Tensor) -> None:
        """The copy; inside enqueued work."""
        self._pinned.copy_(words.reshape(-1), non_blocking=True)

    def tokens(self) -> list[int]:
        """A token for each row, or a number below 0 (`quire.kernels.fused`)."""
        found: list[int] = self._words()[:, 0].tolist()
        return found

    def logprobs(self) -> list[TokenLogprobs]:
        """An entry for each row, with as many of the most likely as were asked for of all."""
        assert self._num_top is not None
        words, k = self._words(), self._num_top
        tokens, ranks, ids = words[:, 0].tolist(), words[:, 2].tolist(), words[:, 3 + k :].tolist()
        numbers = words[:, 1 : 3 + k].view(np.float32)
        values, top_values = numbers[:, 0].tolist(), numbers[:, 2:].tolist()
        return [
            TokenLogprobs(token, value, rank, tuple(top_ids), tuple(top))
            for token, value, rank, top_ids, top in zip(tokens, values, ranks, ids, top_values, strict=True)
        ]

    def _words(self) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        found: np.ndarray[tuple[int, int], np.dtype[np.int32]] = self._pinned.numpy().reshape(-1, self._num_columns)
        return found


def cut(entry: TokenLogprobs, num_top: int) -> TokenLogprobs:
    """The entry with its first `num_top` alone."""
    return TokenLogprobs(
        entry.token_id, entry.logprob, entry.rank, entry.top_token_ids[:num_top], entry.top_logprobs[:num_top]
    )
