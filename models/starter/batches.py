"""Batches of whole dialogues of similar length, with the assistant's tokens marked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from quire.models.starter.data.dialogue import dialogue
from quire.models.starter.data.world import World
from quire.models.starter.rendering import render, token_id

POOL = 768
ROUND = 16
CONTEXT = 2048


@dataclass(frozen=True)
class Batch:
    """Token ids [dialogues, length], padded on the right, and which of them the model must have predicted."""

    tokens: Tensor
    supervised: Tensor


class Marker:
    """Finds the assistant's turns in token ids: what follows `<|im_start|>assistant\\n`, through `<|im_end|>`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids
        self.start = token_id(tokenizer, "<|im_start|>")
        self.end = token_id(tokenizer, "<|im_end|>")
        self.padding = token_id(tokenizer, "<|endoftext|>")

    def mark(self, ids: list[int]) -> list[bool]:
        marks, inside, index = [False] * len(ids), False, 0
        while index < len(ids):
            if ids[index : index + len(self.opening)] == self.opening:
                inside, index = True, index + len(self.opening)
                continue
            marks[index] = inside
            inside = inside and ids[index] != self.end
            index += 1
        return marks


def batches(world: World, folder: Path, tokens_per_batch: int) -> Iterator[Batch]:
    """Endless batches: a pool of new dialogues, sorted by length, cut where the padded size is reached, shuffled."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marker, order = Marker(tokenizer), Random(world.rng.random())
    while True:
        samples = [dialogue(world) for _ in range(POOL)]
        texts = [render(sample.messages, sample.tools) for sample in samples]
        encoded = [coded.ids for coded in tokenizer.encode_batch(texts, add_special_tokens=False)]
        encoded = sorted((ids for ids in encoded if len(ids) <= CONTEXT), key=len, reverse=True)
        pool: list[Batch] = []
        while encoded:
            length = -(-len(encoded[0]) // ROUND) * ROUND
            count = max(1, tokens_per_batch // length)
            pool.append(padded(encoded[:count], length, marker))
            encoded = encoded[count:]
        order.shuffle(pool)
        yield from pool


def padded(rows: list[list[int]], length: int, marker: Marker) -> Batch:
    tokens = torch.full((len(rows), length), marker.padding)
    supervised = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, ids in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        supervised[index, : len(ids)] = torch.tensor(marker.mark(ids))
    return Batch(tokens, supervised)
