"""Norms over the last dimension."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from quire.engine.models.config import NormSpec
from quire.engine.models.weights import WeightSource
from quire.kernels import Kernels
from quire.kernels.layer import NormParts


class Norm(Protocol):
    """[..., size] -> [..., size]."""

    def __call__(self, x: Tensor) -> Tensor:
        """x, normed."""


class RMSNorm:
    """x / rms(x) * weight (Zhang & Sennrich, 2019)."""

    def __init__(self, kernels: Kernels, weight: Tensor, eps: float) -> None:
        self.kernels, self.weight, self.eps = kernels, weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        """x, normed."""
        return self.kernels.rms_norm(x, self.weight, self.eps)


class LayerNorm:
    """(x - mean) / deviation * weight + bias (Ba et al., 2016)."""

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.kernels, self.weight, self.bias, self.eps = kernels, weight, bias, eps

    def __call__(self, x: Tensor) -> Tensor:
        """x, normed."""
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)


def unchanged(x: Tensor) -> Tensor:
    """No norm."""
    return x


def norm_parts(norm: Norm) -> NormParts:
    """As a backend that computes whole layers takes it."""
    if isinstance(norm, LayerNorm):
        return NormParts(norm.weight, norm.eps, norm.bias, is_layer_norm=True)
    assert isinstance(norm, RMSNorm), "every layer has its norms"
    return NormParts(norm.weight, norm.eps)


def take_norm(spec: NormSpec | None, size: int, name: str, kernels: Kernels, weights: WeightSource) -> Norm:
    """The norm that `spec` describes, with the weights `name`.weight and, for a layer norm, `name`.bias."""
    if spec is None:
        return unchanged
    weight = weights.take(f"{name}.weight", (size,))
    if spec.kind == "rms":
        return RMSNorm(kernels, weight, spec.eps)
    return LayerNorm(kernels, weight, weights.take(f"{name}.bias", (size,)), spec.eps)


def take_head_norm(
    spec: NormSpec | None,
    sizes: tuple[int, int, int],
    names: tuple[str, str],
    kernels: Kernels,
    weights: WeightSource,
) -> RMSNorm | None:
    """One norm for the heads of queries and keys side by side; sizes: heads, kv heads, head dim; names: q's, k's."""
    if spec is None:
        return None
    num_heads, num_kv_heads, head_dim = sizes
    query, key = (weights.take(f"{name}.weight", (head_dim,)) for name in names)
    weight = query.new_empty((num_heads + num_kv_heads, head_dim))
    weight[:num_heads], weight[num_heads:] = query, key
    return RMSNorm(kernels, weight, spec.eps)
