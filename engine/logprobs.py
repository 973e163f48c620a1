"""Log probabilities of tokens: the raw logits' log-softmax, the token's rank, and the k most likely beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.engine.messages import TokenLogprobs

MAX_LOGITS_BYTES = 64 << 20
"""Logits of a long prompt are computed in slices of at most this many bytes."""


def slice_rows(vocab_size: int) -> int:
    """How many rows of float32 logits one slice may have; at least one."""
    return max(1, MAX_LOGITS_BYTES // (4 * vocab_size))


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One entry a row of `logits` (float32 [R, V], R of each list): that token's, and the `num_top` most likely.

    Rank 1 is the most likely; tokens of equal probability share the better rank. Equal ones among the most likely stand
    in the order of their ids. No full sort: one pass to count, one partial selection.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen_ids = torch.tensor(token_ids, dtype=torch.int64).unsqueeze(1)
    chosen = logprobs.gather(1, chosen_ids)
    ranks = (logits > logits.gather(1, chosen_ids)).sum(dim=1).add_(1).tolist()
    values = chosen.squeeze(1).tolist()
    widest = min(max(num_top, default=0), logits.shape[1])
    if not widest:
        return [TokenLogprobs(*entry) for entry in zip(token_ids, values, ranks, strict=True)]
    top = torch.topk(logprobs, widest, dim=-1)
    entries = []
    for row, (top_values, top_ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        pairs = sorted(zip(top_values, top_ids, strict=True), key=lambda pair: (-pair[0], pair[1]))[: num_top[row]]
        top_token_ids, top_logprobs = tuple(i for _, i in pairs), tuple(value for value, _ in pairs)
        entries.append(TokenLogprobs(token_ids[row], values[row], ranks[row], top_token_ids, top_logprobs))
    return entries
