"""The table of names and shapes is what a decoder takes, for every family and option."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_checkpoint
from torch import Tensor

from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.engine.models.shapes import count_head, count_weights, weight_shapes
from quire.kernels import select


class Taken:
    """A source that notes what is asked."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bytes_taken = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        assert name not in self.shapes
        self.shapes[name] = shape
        return torch.zeros(shape)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("smollm", {}),
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
    ],
)
def test_shapes_are_what_the_decoder_takes(
    family: str, overrides: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", family, **overrides)
    config = read_model_config(folder, "tiny")
    taken = Taken()
    Decoder(config, select("cpu", "cpu"), taken, num_positions=8)
    assert weight_shapes(config) == taken.shapes
    counts = count_weights(config)
    assert counts.total == sum(math.prod(shape) for shape in taken.shapes.values())
    assert counts.attention == sum(math.prod(s) for name, s in taken.shapes.items() if "attn." in name)
    assert counts.feed_forward == sum(math.prod(s) for name, s in taken.shapes.items() if "mlp." in name)
    assert count_head(config) == config.vocab_size * config.hidden_size
