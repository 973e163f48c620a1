"""Sampling on a device: the host says what each row wants, the device computes it and reads nothing back.

The order of `quire.engine.sampler`, for all rows of a step at once: adjust (penalties from the row's own tokens on the
device, then what is added and masked), draw, log probabilities of the unchanged logits. `sample` and `logprobs` are the
backend's (`quire.kernels.fused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quire.engine.device_results import result_words
from quire.engine.device_rows import DeviceRow
from quire.engine.device_state import DeviceState, Parameters
from quire.engine.logprobs import slice_rows
from quire.engine.packed_words import Part, Words
from quire.engine.runner_seams import Model
from quire.engine.step import RowWork
from quire.kernels.fused import LogprobTensors, SamplingTensors


class SamplingKernels(Protocol):
    """The operations of `quire.kernels.fused.FusedKernels` that sampling needs."""

    def sample(self, scores: Tensor, sampling: SamplingTensors) -> Tensor:
        """See `FusedKernels.sample`."""

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
        """See `FusedKernels.logprobs`."""


class Adjustment:
    """What changes the logits of some of a step's rows; made on the host, applied on the device."""

    def __init__(self, rows: Sequence[DeviceRow], vocab_size: int, words: Words) -> None:
        """`rows`: those that adjust, in the order of the scores that `apply` gets."""
        self._vocab_size = vocab_size
        self._longest = max(row.num_tokens for row in rows)
        self._penalises = any(row.edits is not None and row.edits.penalises for row in rows)
        self._lengths = words.put([row.num_tokens for row in rows])
        self._added = self._add_up(rows, words)
        self._allowed = self._allow(rows, words)
        self._bad_words = self._forbid(rows, words)

    def apply(self, scores: Tensor, rows: Tensor, parameters: Parameters, state: DeviceState) -> None:
        """Change `scores` float32 [A, V] of `rows` int64 [A] in place."""
        lengths = self._lengths().long()
        if self._penalises:
            self._penalise(scores, state.token_ids[:, : self._longest].index_select(0, rows), lengths, parameters)
        flat = scores.view(-1)
        if self._added is not None:
            places, values = self._added
            flat.index_add_(0, places().long(), values().view(torch.float32))
        if self._allowed is not None:
            places, limited = self._allowed
            kept = torch.zeros_like(scores, dtype=torch.int32)
            kept.view(-1).index_fill_(0, places().long(), 1)
            scores.masked_fill_((limited() != 0).unsqueeze(1) & (kept == 0), -torch.inf)
        if self._bad_words is not None:
            owners, prefixes, last, width = self._bad_words
            index = owners().long()
            wanted = prefixes().view(-1, width)
            at = lengths.index_select(0, index).unsqueeze(1) - width + torch.arange(width, device=scores.device)
            tails = state.token_ids[rows.index_select(0, index).unsqueeze(1), at.clamp(min=0)]
            met = ((wanted < 0) | ((tails == wanted) & (at >= 0))).all(dim=1)
            change = torch.zeros(len(index), device=scores.device).masked_fill(met, -torch.inf)
            flat.index_add_(0, index * self._vocab_size + last().long(), change)

    def _penalise(self, scores: Tensor, tokens: Tensor, lengths: Tensor, parameters: Parameters) -> None:
        """`tokens` int32 [A, L]: the rows' own, of which the first `lengths` [A] count."""
        places = torch.arange(tokens.shape[1], device=scores.device)
        known = places < lengths.unsqueeze(1)
        output = known & (places >= parameters.num_prompt_tokens.unsqueeze(1))
        ids = tokens.long()
        seen = torch.zeros_like(scores).scatter_add_(1, ids, known.float())
        counts = torch.zeros_like(scores).scatter_add_(1, ids, output.float())
        repetition = parameters.repetition.unsqueeze(1)
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores.copy_(torch.where(seen > 0, repeated, scores))
        cost = counts * parameters.frequency.unsqueeze(1) + parameters.presence.unsqueeze(1)
        scores.sub_(cost.masked_fill(counts == 0, 0.0))

    def _add_up(self, rows: Sequence[DeviceRow], words: Words) -> tuple[Part, Part] | None:
        places, values = [], []
        for index, row in enumerate(rows):
            assert row.edits is not None
            stop_ids = row.edits.stop_ids if row.masks_stop else row.edits.stop_ids[:0]
            places.append(np.concatenate((row.edits.added_ids, stop_ids)) + index * self._vocab_size)
            values.append(np.concatenate((row.edits.added, np.full(stop_ids.size, -np.inf, dtype=np.float32))))
        all_values = np.concatenate(values)
        if not all_values.size:
            return None
        return words.put(np.concatenate(places)), words.put(all_values.view(np.int32))

    def _allow(self, rows: Sequence[DeviceRow], words: Words) -> tuple[Part, Part] | None:
        """Columns that rows with `allowed_token_ids` keep, and which rows those are."""
        limits = [row.edits.allowed if row.edits is not None else None for row in rows]
        places = [ids + index * self._vocab_size for index, ids in enumerate(limits) if ids is not None]
        if not places:
            return None
        return words.put(np.concatenate(places)), words.put([int(ids is not None) for ids in limits])

    def _forbid(self, rows: Sequence[DeviceRow], words: Words) -> tuple[Part, Part, Part, int] | None:
        """For each word of several tokens: whose it is, its beginning (right-aligned, -1 before), its last token."""
        bad = [(index, word) for index, row in enumerate(rows) if row.edits is not None for word in row.edits.words]
        if not bad:
            return None
        width = max(len(word) for _, word in bad) - 1
        prefixes = [[-1] * (width + 1 - len(word)) + list(word[:-1]) for _, word in bad]
        return (
            words.put([index for index, _ in bad]),
            words.put(np.array(prefixes)),
            words.put([word[-1] for _, word in bad]),
            width,
        )


class Sampling:
    """How the rows of one step sample: what the host decided, and the words that it sends for it."""

    def __init__(
        self,
        rows: Sequence[tuple[int, DeviceRow]],
        sources: Sequence[int],
        vocab_size: int,
        words: Words,
        *,
        recorded: bool = False,
    ) -> None:
        """(number, row) of each row that samples; `sources[i]`: the hidden state whose logits row i samples from.

        `recorded`: the logits will be there, in the order of the rows, and the plain choice of all is a recording.
        """
        self.rows = [number for number, _ in rows]
        self.asked = [row.params.logprobs for _, row in rows]
        """How many of the most likely tokens each wants to see; None: no log probabilities."""
        counts = [asked for asked in self.asked if asked is not None]
        self.num_top = min(max(counts), vocab_size) if counts else None
        """None: nobody wants log probabilities."""
        adjusting = [index for index, (_, row) in enumerate(rows) if row.adjusts]
        self.is_plain = not adjusting and self.num_top is None
        if recorded and self.is_plain:
            return
        self._numbers = words.put(self.rows)
        self._positions = words.put([row.num_tokens for _, row in rows])
        distinct = list(dict.fromkeys(sources))
        self._sources = words.put(distinct)
        self._shares: Part | None = None
        if len(distinct) < len(sources):
            index_of = {source: index for index, source in enumerate(distinct)}
            self._shares = words.put([index_of[source] for source in sources])
        self._adjustment: Adjustment | None = None
        if adjusting:
            self._adjustment = Adjustment([rows[index][1] for index in adjusting], vocab_size, words)
            self._adjusting = words.put(adjusting)

    def logits(self, hidden: Tensor, model: Model, vocab_size: int) -> Tensor:
        """float32 [R, V] of the hidden states [T, H]."""
        logits = model.logits(hidden.index_select(0, self._sources().long()))[:, :vocab_size]
        return logits if self._shares is None else logits.index_select(0, self._shares().long())

    def draw(self, logits: Tensor, state: DeviceState, kernels: SamplingKernels) -> Tensor:
        """Choose and append a token for each row of logits float32 [R, V]; `result_words` of all, int32 [R, K]."""
        rows, positions = self._numbers().long(), self._positions().long()
        masked = torch.zeros(len(rows), dtype=torch.bool, device=logits.device)
        scores = logits
        if self._adjustment is not None:
            index = self._adjusting().long()
            some, who = logits.index_select(0, index), rows.index_select(0, index)
            self._adjustment.apply(some, who, state.parameters(who), state)
            scores = logits.index_copy(0, index, some)
            masked.index_fill_(0, index, True)
        tokens = kernels.sample(scores, state.parameters(rows).sampling(positions, masked))
        state.append(rows, positions, tokens)
        return result_words(tokens, None if self.num_top is None else kernels.logprobs(logits, tokens, self.num_top))


class PromptScores:
    """The log probabilities of prompt tokens that one work computes on its way."""

    def __init__(self, work: RowWork, row: DeviceRow, begin: int, vocab_size: int) -> None:
        """`begin`: the work's first hidden state."""
        self.row, self._begin, self._first = work.row, begin, work.start + 1
        self.num_rows = min(work.start + work.num_tokens, row.num_prompt_tokens - 1) - work.start
        self.num_top = min(row.params.prompt_logprobs or 0, vocab_size)
        self._vocab_size = vocab_size

    def compute(self, hidden: Tensor, model: Model, state: DeviceState, kernels: SamplingKernels) -> Tensor:
        """`result_words` of the prompt positions start + 1 .., int32 [num_rows, K]; logits are made in slices."""
        targets = state.token_ids[self.row, self._first : self._first + self.num_rows].long()
        parts, per_slice = [], slice_rows(self._vocab_size)
        for first in range(0, self.num_rows, per_slice):
            some = targets[first : first + per_slice]
            begin = self._begin + first
            logits = model.logits(hidden[begin : begin + len(some)])[:, : self._vocab_size]
            parts.append(result_words(some, kernels.logprobs(logits, some, self.num_top)))
        return torch.cat(parts)
