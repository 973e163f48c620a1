"""What the sampler remembers of one row: its parameters as tensors, and what its own tokens change in the logits."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.sampling_params import SamplingParams
from quire.kernels.cpu.sampling import pack_parameters


class RowSampling:
    """The sampling side of one row; built from the row's tokens, so that it is the same after a preemption.

    `vocab_size` counts the ids that may be sampled. Raises ValueError for what the edge should have refused.
    """

    def __init__(
        self,
        params: SamplingParams,
        choice: int,
        token_ids: npt.NDArray[np.int32],
        num_prompt_tokens: int,
        vocab_size: int,
    ) -> None:
        if params.temperature > 0 and params.seed is None:
            raise ValueError("a row that samples at a temperature needs a seed")
        if token_ids.size and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab_size:
            raise ValueError(f"token ids {token_ids.min()}..{token_ids.max()} are not all within 0..{vocab_size - 1}")
        self.params = params
        self.seed = params.seed or 0
        self.choice = choice
        self.position = int(token_ids.size)
        """Where the next token goes: the position that its noise is of."""
        self.cuts = 0 < params.top_k < vocab_size or params.top_p < 1
        self.filters = self.cuts or params.min_p > 0
        self._num_output_tokens = self.position - num_prompt_tokens
        self._penalises_output = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._output_counts: dict[int, int] = {}
        self._seen: dict[int, None] = {}
        if self._penalises_output:
            unique, counts = np.unique(token_ids[num_prompt_tokens:], return_counts=True)
            self._output_counts = dict(zip(unique.tolist(), counts.tolist(), strict=True))
        if params.repetition_penalty != 1:
            self._seen = dict.fromkeys(np.unique(token_ids).tolist())
        self._bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self._stop_ids = torch.tensor(params.stop_token_ids, dtype=torch.int64)
        self._forbidden: Tensor | None = None
        if params.allowed_token_ids is not None:
            self._forbidden = torch.ones(vocab_size, dtype=torch.bool)
            self._forbidden[list(params.allowed_token_ids)] = False
        self._banned = torch.tensor([word[0] for word in params.bad_words if len(word) == 1], dtype=torch.int64)
        self._bad_words = [word for word in params.bad_words if len(word) > 1]
        longest = max((len(word) for word in self._bad_words), default=1)
        self._tail_length = longest - 1
        self._tail: tuple[int, ...] = tuple(token_ids[self.position - min(self._tail_length, self.position) :].tolist())
        self._always_adjusts = bool(
            self._penalises_output
            or params.repetition_penalty != 1
            or params.logit_bias
            or params.bad_words
            or self._forbidden is not None
        )

    @property
    def is_plain_greedy(self) -> bool:
        """The next token is the argmax of the raw logits."""
        return self.params.temperature == 0 and not self.adjusts

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes anything for the next token."""
        return self._always_adjusts or self._masks_stop

    @cached_property
    def packed(self) -> bytes:
        """What the next token depends on beside logits and position, for the compiled sampler."""
        params = self.params
        return pack_parameters(
            self.seed,
            self.choice,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
        )

    @property
    def _masks_stop(self) -> bool:
        return self._num_output_tokens < self.params.min_tokens and bool(self.params.stop_token_ids)

    def append(self, token_id: int) -> None:
        """The row's next token is known."""
        self.position += 1
        self._num_output_tokens += 1
        if self._penalises_output:
            self._output_counts[token_id] = self._output_counts.get(token_id, 0) + 1
        if self.params.repetition_penalty != 1:
            self._seen[token_id] = None
        if self._tail_length:
            self._tail = (*self._tail, token_id)[-self._tail_length :]

    def adjust(self, scores: Tensor) -> None:
        """Apply penalties, bias and masks to `scores` (float32 [V]) in place."""
        if self._always_adjusts:
            self._penalise(scores)
            if self.params.logit_bias:
                scores.index_add_(0, self._bias_ids, self._bias)
            if self._forbidden is not None:
                scores.masked_fill_(self._forbidden, -torch.inf)
            if self.params.bad_words:
                scores[self._banned] = -torch.inf
                for word in self._bad_words:
                    prefix = word[:-1]
                    if self._tail[-len(prefix) :] == prefix:
                        scores[word[-1]] = -torch.inf
        if self._masks_stop:
            scores[self._stop_ids] = -torch.inf

    def _penalise(self, scores: Tensor) -> None:
        params = self.params
        if self._seen:
            ids = torch.tensor(list(self._seen), dtype=torch.int64)
            seen = scores[ids]
            penalty = params.repetition_penalty
            scores[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if self._output_counts:
            ids = torch.tensor(list(self._output_counts), dtype=torch.int64)
            counts = torch.tensor(list(self._output_counts.values()), dtype=torch.float32)
            scores[ids] -= counts * params.frequency_penalty + params.presence_penalty
