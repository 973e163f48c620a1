"""The sampler, written to be read: one row, one step after the other. `quire.engine.sampler` is tested against it."""

from __future__ import annotations

import math
from collections import Counter

import torch

from quire.engine.sampling_params import SamplingParams
from quire.kernels.noise import gumbel_noise


def reference_scores(logits: list[float], params: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    """Logits after penalties, bias and masks."""
    scores = list(logits)
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in Counter(output).items():
        scores[token] -= params.presence_penalty + params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    if params.allowed_token_ids is not None:
        scores = [s if token in params.allowed_token_ids else -math.inf for token, s in enumerate(scores)]
    history = prompt + output
    for word in params.bad_words:
        prefix = list(word[:-1])
        if not prefix or history[-len(prefix) :] == prefix:
            scores[word[-1]] = -math.inf
    if len(output) < params.min_tokens:
        for token in params.stop_token_ids:
            scores[token] = -math.inf
    return scores


def reference_survivors(scores: list[float], params: SamplingParams) -> set[int]:
    """Ids that top_k, top_p and min_p leave, of scores that are not all -inf."""
    largest = max(scores)
    weights = [math.exp((score - largest) / params.temperature) for score in scores]
    ordered = sorted(weights, reverse=True)
    if params.top_k > 0:
        ordered = ordered[: params.top_k]
    least = ordered[-1]
    if params.top_p < 1:
        mass, wanted = 0.0, params.top_p * sum(ordered)
        for weight in ordered:
            mass += weight
            least = weight
            if mass >= wanted:
                break
    least = max(least, params.min_p * ordered[0])
    return {token for token, weight in enumerate(weights) if weight >= least and scores[token] > -math.inf}


def reference_token(
    logits: list[float], params: SamplingParams, choice: int, prompt: list[int], output: list[int]
) -> int | str:
    """The next token, or the failure code of a row that has none."""
    if not all(math.isfinite(logit) for logit in logits):
        return "model_numerics"
    scores = reference_scores(logits, params, prompt, output)
    largest = max(scores)
    if largest == -math.inf:
        return "no_valid_token"
    if params.temperature == 0:
        return scores.index(largest)
    survivors = sorted(reference_survivors(scores, params))
    assert params.seed is not None
    noise = gumbel_noise(params.seed, choice, len(prompt) + len(output), torch.tensor(survivors)).tolist()
    noisy = [(scores[token] - largest) / params.temperature + g for token, g in zip(survivors, noise, strict=True)]
    return survivors[noisy.index(max(noisy))]


def reference_logprob(logits: list[float], token: int) -> tuple[float, int]:
    """Log probability and rank of a token under the raw logits."""
    largest = max(logits)
    total = math.log(sum(math.exp(logit - largest) for logit in logits)) + largest
    return logits[token] - total, 1 + sum(logit > logits[token] for logit in logits)
