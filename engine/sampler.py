"""From logits to tokens: penalties, masks, filters, and one draw that depends on its own request alone.

The order, for one row (`tests/support/sampler_reference.py` says the same slowly, and is the specification):

  1. columns from the tokenizer's size on do not exist; a NaN or an infinity in the others fails the row;
  2. repetition penalty on tokens of prompt and output, presence and frequency penalties on tokens of the output;
  3. logit_bias; then allowed_token_ids, bad_words and (until min_tokens are out) stop_token_ids set columns to -inf;
     a row with nothing left fails;
  4. temperature 0: the first index of the largest logit;
  5. otherwise weights = softmax(logits / T). top_k, top_p and min_p each keep the weights at or above a threshold, so
     that equal tokens share their fate;
  6. the token is argmax(logits / T + Gumbel noise) over what is kept, with the noise of (seed, choice, position, id).

Everything is float32 and elementwise or a reduction within one row, so a row's token never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from quire.engine.logprobs import token_logprobs
from quire.engine.messages import Failure, TokenLogprobs
from quire.engine.row_sampling import RowSampling
from quire.kernels.noise import gumbel, noise_key

FIRST_CANDIDATES = 128
"""top_p looks among this many most likely tokens before it sorts the whole row."""
NOISE_TOKENS = 1 << 16
"""Noise is made for so many tokens at a time: what it needs on the way stays in the processor's cache."""
_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny


class Draw(NamedTuple):
    """One row's token with its log probabilities when asked for, or why there is none."""

    token_id: int = -1
    logprobs: TokenLogprobs | None = None
    failure: Failure | None = None


class Sampler(Protocol):
    """From logits to tokens and log probabilities: this file in PyTorch, `quire.engine.compiled_sampler` in C."""

    def sample(self, logits: Tensor, sources: Sequence[int], rows: Sequence[RowSampling]) -> list[Draw]:
        """See `sample` below."""

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
        """See `quire.engine.logprobs.token_logprobs`."""


class TorchSampler:
    """The sampler in PyTorch."""

    def sample(self, logits: Tensor, sources: Sequence[int], rows: Sequence[RowSampling]) -> list[Draw]:
        """See `sample` below."""
        return sample(logits, sources, rows)

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
        """See `quire.engine.logprobs.token_logprobs`."""
        return token_logprobs(logits, token_ids, num_top)


def sample(logits: Tensor, sources: Sequence[int], rows: Sequence[RowSampling]) -> list[Draw]:
    """One draw for each of `rows`, row i from `logits[sources[i]]` (float32 [R, V], V the ids that may be sampled).

    An exception in the preparation of one row fails that row alone (`internal_error`).
    """
    finite = torch.isfinite(logits.sum(dim=1)).tolist()
    draws: list[Draw] = [Draw(failure=NOT_FINITE)] * len(rows)
    plain = [i for i, row in enumerate(rows) if finite[sources[i]] and row.is_plain_greedy]
    if plain:
        best = logits.argmax(dim=1).tolist()
        for i in plain:
            draws[i] = Draw(best[sources[i]])
    others = [i for i, row in enumerate(rows) if finite[sources[i]] and not row.is_plain_greedy]
    if others:
        chosen = _sample_adjusted(logits[[sources[i] for i in others]], [rows[i] for i in others])
        for i, draw in zip(others, chosen, strict=True):
            draws[i] = draw
    return _with_logprobs(draws, logits, sources, rows)


def _sample_adjusted(scores: Tensor, rows: Sequence[RowSampling]) -> list[Draw]:
    """Draws for rows that are not plain greedy; `scores` [R, V] is theirs to change."""
    draws: list[Draw | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        try:
            row.adjust(scores[i])
        except Exception as error:  # one row's fault must not reach its neighbours
            draws[i] = Draw(failure=internal_error(f"sampling was not possible: {type(error).__name__}"))
            scores[i].zero_()
    largest = scores.amax(dim=1)
    empty = torch.isneginf(largest).tolist()
    best = scores.argmax(dim=1).tolist()
    random = []
    for i, row in enumerate(rows):
        if draws[i] is None:
            draws[i] = Draw(failure=NOTHING_LEFT) if empty[i] else Draw(best[i])
            if not empty[i] and row.params.temperature > 0:
                random.append(i)
    if random:
        tokens = _draw(scores[random] - largest[random].unsqueeze(1), [rows[i] for i in random])
        for i, token in zip(random, tokens, strict=True):
            draws[i] = Draw(token)
    return [draw for draw in draws if draw is not None]


def _draw(scores: Tensor, rows: Sequence[RowSampling]) -> list[int]:
    """Tokens at a temperature above 0; `scores` [R, V] with a largest value of 0 in each row."""
    temperature = torch.tensor([row.params.temperature for row in rows], dtype=torch.float64)
    temperature = temperature.clamp(min=_SMALLEST_TEMPERATURE).to(torch.float32)
    scores = scores / temperature.unsqueeze(1)
    keys = torch.tensor([noise_key(row.seed, row.choice, row.position) for row in rows], dtype=torch.int64)
    filtered = [i for i, row in enumerate(rows) if row.filters]
    if not filtered:
        return _draw_whole(scores, keys)
    if len(filtered) == len(rows):
        return _draw_filtered(scores, keys, rows)
    whole = [i for i, row in enumerate(rows) if not row.filters]
    tokens = dict(zip(whole, _draw_whole(scores[whole], keys[whole]), strict=True))
    some = _draw_filtered(scores[filtered], keys[filtered], [rows[i] for i in filtered])
    tokens.update(zip(filtered, some, strict=True))
    return [tokens[i] for i in range(len(rows))]


def _draw_whole(scores: Tensor, keys: Tensor) -> list[int]:
    token_ids = torch.arange(scores.shape[1])
    rows_at_once = max(1, NOISE_TOKENS // scores.shape[1])
    tokens: list[int] = []
    for some_scores, some_keys in zip(torch.split(scores, rows_at_once), torch.split(keys, rows_at_once), strict=True):
        tokens += (some_scores + gumbel(some_keys.unsqueeze(1), token_ids)).argmax(dim=1).tolist()
    return tokens


def _draw_filtered(scores: Tensor, keys: Tensor, rows: Sequence[RowSampling]) -> list[int]:
    """Noise is computed for the survivors only."""
    weights = torch.softmax(scores, dim=1)
    kept_rows, kept_ids = (weights >= _thresholds(weights, rows).unsqueeze(1)).nonzero(as_tuple=True)
    noisy = torch.full_like(scores, -torch.inf)
    noisy[kept_rows, kept_ids] = scores[kept_rows, kept_ids] + gumbel(keys[kept_rows], kept_ids)
    tokens: list[int] = noisy.argmax(dim=1).tolist()
    return tokens


def _thresholds(weights: Tensor, rows: Sequence[RowSampling]) -> Tensor:
    """The smallest weight that each row keeps, float32 [R]."""
    min_p = torch.tensor([row.params.min_p for row in rows], dtype=torch.float32)
    thresholds = weights.amax(dim=1) * min_p
    cut = [i for i, row in enumerate(rows) if row.cuts]
    if cut:
        by_rank = _rank_thresholds(weights[cut], [rows[i] for i in cut], FIRST_CANDIDATES)
        thresholds[cut] = torch.maximum(thresholds[cut], by_rank)
    return thresholds


def _rank_thresholds(weights: Tensor, rows: Sequence[RowSampling], candidates: int) -> Tensor:
    """The smallest weight that top_k and top_p keep, float32 [R].

    The most likely `candidates` tokens are sorted; a row whose top_p mass is not among them is done again with all.
    """
    vocab_size = weights.shape[1]
    top_k = [min(row.params.top_k, vocab_size) if row.params.top_k > 0 else vocab_size for row in rows]
    candidates = min(vocab_size, max(k if k < vocab_size else candidates for k in top_k))
    if candidates < vocab_size:
        ordered = weights.topk(candidates, dim=1).values
    else:
        ordered = weights.sort(dim=1, descending=True).values
    mass = ordered.to(torch.float64).cumsum(dim=1)
    last = torch.tensor([min(k, candidates) - 1 for k in top_k]).unsqueeze(1)
    limited = torch.tensor([k < vocab_size for k in top_k]).unsqueeze(1)
    total = torch.where(limited, mass.gather(1, last), 1.0)
    top_p = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64).unsqueeze(1)
    wanted = torch.where(top_p < 1, top_p * total, torch.inf)
    rank = torch.searchsorted(mass, wanted)
    beyond = ((rank >= candidates) & ~limited & (top_p < 1)).squeeze(1).nonzero().squeeze(1).tolist()
    thresholds = ordered.gather(1, torch.minimum(rank, last)).squeeze(1)
    if beyond and candidates < vocab_size:
        thresholds[beyond] = _rank_thresholds(weights[beyond], [rows[i] for i in beyond], vocab_size)
    return thresholds


def _with_logprobs(
    draws: list[Draw], logits: Tensor, sources: Sequence[int], rows: Sequence[RowSampling]
) -> list[Draw]:
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None and draws[i].failure is None]
    if asked:
        raw = logits[[sources[i] for i in asked]]
        tokens = [draws[i].token_id for i in asked]
        entries = token_logprobs(raw, tokens, [rows[i].params.logprobs or 0 for i in asked])
        for i, entry in zip(asked, entries, strict=True):
            draws[i] = Draw(draws[i].token_id, entry)
    return draws


def internal_error(message: str) -> Failure:
    """The failure of one request by a fault of ours."""
    return Failure("internal_error", message)


NOT_FINITE = Failure("model_numerics", "the model's logits for this request are not finite")
NOTHING_LEFT = Failure("no_valid_token", "allowed_token_ids, bad_words and min_tokens leave no token to choose")
