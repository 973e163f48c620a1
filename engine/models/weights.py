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
    weight = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
    del matrices
    return kernels.pack(weight, torch.cat(biases) if bias else None)
