"""Batched decoding with a cache, for measuring; the prompts are padded on the left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from quire.models.starter.model import LayerCache, StarterModel
from quire.models.starter.rendering import token_id

ROWS = 64


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; otherwise the nucleus of top_p is sampled."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of each row of logits [rows, vocabulary]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(dim=-1, descending=True)
    scores[scores.cumsum(dim=-1) - scores >= sampling.top_p] = 0
    return order.gather(1, torch.multinomial(scores, 1, generator=generator)).squeeze(1)


@torch.inference_mode()
def decode_rows(
    model: StarterModel, prompts: Sequence[list[int]], ends: set[int], limit: int, sampling: Sampling
) -> list[list[int]]:
    """Continue each prompt until an end token or the limit; the end token is left out."""
    generator = torch.Generator().manual_seed(sampling.seed)
    longest = max(len(prompt) for prompt in prompts)
    rows = len(prompts)
    tokens = torch.zeros((rows, longest), dtype=torch.long)
    present = torch.zeros((rows, longest), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        present[row, longest - len(prompt) :] = True
    positions = (present.cumsum(dim=1) - 1).clamp(min=0)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (present[:, None, None, :] & causal) | torch.eye(longest, dtype=torch.bool)
    cache = model.empty_cache(rows)
    hidden = model.hidden(tokens, positions, mask, cache)[:, -1]
    position, alive = positions[:, -1], list(range(rows))
    made: list[list[int]] = [[] for _ in range(rows)]
    for _ in range(limit):
        token = choose(model.logits(hidden), sampling, generator)
        values: list[int] = token.tolist()
        going = [slot for slot, value in enumerate(values) if value not in ends]
        for slot in going:
            made[alive[slot]].append(values[slot])
        if not going:
            break
        if len(going) < len(alive):
            alive = [alive[slot] for slot in going]
            token, position, present = token[going], position[going], present[going]
            cache = [LayerCache(layer.keys[going], layer.values[going]) for layer in cache]
        position = position + 1
        present = torch.cat([present, torch.ones((len(alive), 1), dtype=torch.bool)], dim=1)
        hidden = model.hidden(token[:, None], position[:, None], present[:, None, None, :], cache)[:, -1]
    return made


def decode(
    model: StarterModel, tokenizer: Tokenizer, prompts: Sequence[str], sampling: Sampling, limit: int = 400
) -> list[str]:
    """The model's text for each prompt, in order; prompts of similar length share a batch."""
    ends = {token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")}
    encoded = [coded.ids for coded in tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    texts = [""] * len(encoded)
    for part in chunks(order):
        for index, ids in zip(part, decode_rows(model, [encoded[i] for i in part], ends, limit, sampling), strict=True):
            texts[index] = tokenizer.decode(ids, skip_special_tokens=False)
    return texts


def chunks(order: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(order), ROWS):
        yield order[start : start + ROWS]
