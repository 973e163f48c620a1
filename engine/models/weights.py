"""Where modules take their weights from, by Hugging Face's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from quire.kernels import Kernels


class WeightSource(Protocol):
    """Hands out each weight once, in the dtype of the engine."""

    bytes_taken: int
    """Of all weights handed out so far, in that dtype."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name` of exactly this shape."""


class ExpectedWeights:
    """A source that holds nothing and notes what is asked: the names and shapes that a model needs."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bytes_taken = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor without memory."""
        self.shapes[name] = shape
        return torch.empty(shape, device="meta")


def take_linear(
    weights: WeightSource,
    kernels: Kernels,
    names: Sequence[str],
    out_features: Sequence[int],
    in_features: int,
    *,
    bias: bool,
    transposed: bool,
) -> Any:
    """Take and pack the linear layers `names` side by side as one.

    `out_features` are the parts' output sizes; one name stands for all of them where the file has them fused.
    `transposed`: stored [in, out].
    """
    sizes = list(out_features) if len(names) == len(out_features) else [sum(out_features)]
    matrices = []
    for name, size in zip(names, sizes, strict=True):
        if transposed:
            matrices.append(weights.take(f"{name}.weight", (in_features, size)).T)
        else:
            matrices.append(weights.take(f"{name}.weight", (size, in_features)))
    biases = [weights.take(f"{name}.bias", (size,)) for name, size in zip(names, sizes, strict=True)] if bias else []
    weight = _joined(matrices)
    del matrices
    return kernels.pack(weight, _joined(biases) if bias else None)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other along the first dimension.

    Not torch.cat: of tensors without memory it imports the compiler, which takes two seconds of every start.
    """
    if len(parts) == 1:
        return parts[0]
    joined = parts[0].new_empty((sum(len(part) for part in parts), *parts[0].shape[1:]))
    for target, part in zip(torch.split(joined, [len(part) for part in parts]), parts, strict=True):
        target.copy_(part)
    return joined
