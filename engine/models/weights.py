"""Where modules take their weights from, by Hugging Face's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from quire.kernels import Kernels


class WeightSource(Protocol):
    """Hands out each weight once: matrices in the dtype they are stored in, vectors in the activations'."""

    bytes_taken: int
    """What all weights handed out so far take; who packs them into something smaller or larger corrects it."""

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
    precise: bool = False,
) -> Any:
    """Take and pack the linear layers `names` side by side as one.

    `out_features` are the parts' output sizes; one name stands for all of them where the file has them fused.
    `transposed`: stored [in, out]; `precise`: see `Kernels.pack`.
    """
    before = weights.bytes_taken
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
    packed = kernels.pack(weight, torch.cat(biases) if bias else None, precise=precise)
    weights.bytes_taken = before + packed.nbytes
    return packed
