"""Where modules take their weights from, by Hugging Face's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from quire.kernels import Kernels
from quire.kernels.interface import PacksCodes


class WeightSource(Protocol):
    """Hands out each weight once: matrices in the dtype they are stored in, vectors in the activations'."""

    bytes_taken: int
    """What all weights handed out so far take; who packs them into something smaller or larger corrects it."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name` of exactly this shape."""


class OnDevice:
    """Another source's weights, each moved to the device that computes as soon as it is handed out."""

    def __init__(self, source: WeightSource, device: torch.device) -> None:
        self._source, self._device = source, device

    @property
    def bytes_taken(self) -> int:
        """Of the source."""
        return self._source.bytes_taken

    @bytes_taken.setter
    def bytes_taken(self, num_bytes: int) -> None:
        self._source.bytes_taken = num_bytes

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name` of exactly this shape."""
        return self._source.take(name, shape).to(self._device)


@runtime_checkable
class HoldsCodes(Protocol):
    """A source with matrices that are quantized and may stay so."""

    def common_kind(self, names: Sequence[str]) -> str | None:
        """What the linear layers `names` are all quantized in, where that is to be kept."""

    def take_codes(self, name: str) -> tuple[Tensor, Tensor]:
        """(codes int8 [out, in], scales float32 [out, in / 32]) of the tensor `name`, instead of `take`."""


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
    kind = weights.common_kind(names) if isinstance(weights, HoldsCodes) and isinstance(kernels, PacksCodes) else None
    sizes = list(out_features) if len(names) == len(out_features) else [sum(out_features)]
    if kind is not None:
        return _take_codes(weights, kernels, names, sizes, kind, bias)
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


def _take_codes(
    weights: WeightSource, kernels: Kernels, names: Sequence[str], sizes: Sequence[int], kind: str, bias: bool
) -> Any:
    """The layers side by side, code by code."""
    assert isinstance(weights, HoldsCodes)
    assert isinstance(kernels, PacksCodes)
    before = weights.bytes_taken
    parts = [weights.take_codes(f"{name}.weight") for name in names]
    biases = [weights.take(f"{name}.bias", (size,)) for name, size in zip(names, sizes, strict=True)] if bias else []
    codes, scales = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True))
    del parts
    packed = kernels.pack_codes(kind, codes, scales, torch.cat(biases) if bias else None)
    weights.bytes_taken = before + packed.nbytes
    return packed
