"""A whole decoder layer as one operation, for backends to which many small calls cost more than what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from quire.kernels.interface import Activation, AttentionPlan


@dataclass(frozen=True, eq=False)
class NormParts:
    """A norm over the hidden size; with a bias a layer norm, without one `rms_norm` unless it says otherwise."""

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    is_layer_norm: bool = False


@dataclass(frozen=True, eq=False)
class LayerParts:
    """x + out(attention(rope(qkv(norm(x))))), then x + down(act(up(norm(x)))); matrices as `Kernels.pack` made them.

    Operations, shapes and meanings are those of `quire.kernels.interface.Kernels`.
    """

    norm: NormParts
    qkv: Any
    """[hidden] -> heads + 2 * kv_heads heads, side by side."""
    head_norm: NormParts | None
    """Of queries and keys, weight [heads + kv_heads, D]."""
    cos_sin: Tensor | None
    """None: nothing rotates."""
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    out: Any
    feed_forward_norm: NormParts
    up: Any
    """Gated: gate and up, side by side."""
    is_gated: bool
    activation: Activation
    down: Any


WholeLayer = Callable[[Tensor, Tensor, AttentionPlan, Tensor, Tensor], Tensor]
"""(x [T, hidden], positions int64 [T], plan, k_cache, v_cache) -> [T, hidden]; may take x's memory for the answer."""


@runtime_checkable
class ComputesLayers(Protocol):
    """A backend that takes a layer as a whole; to the same bits as its single operations."""

    def layer(self, parts: LayerParts) -> WholeLayer:
        """The layer, ready to be called."""
