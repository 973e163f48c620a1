"""The feed-forward half of a block."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from quire.engine.models.config import ActivationKind, FeedForwardSpec, WeightNames
from quire.engine.models.weights import WeightSource, take_linear
from quire.kernels import Kernels


class FeedForward(Protocol):
    """[T, hidden] -> [T, hidden]."""

    def __call__(self, x: Tensor) -> Tensor:
        """The new part of the residual stream."""

    def parts(self) -> dict[str, Any]:
        """Its part of `LayerParts`."""


class GatedFeedForward:
    """down(act(gate(x)) * up(x)) (Shazeer, 2020); gate and up are one matmul."""

    def __init__(self, kernels: Kernels, gate_up: Any, down: Any, activation: ActivationKind) -> None:
        self.kernels, self.gate_up, self.down, self.activation = kernels, gate_up, down, activation

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        gate, up = self.kernels.linear(x, self.gate_up).chunk(2, dim=-1)
        return self.kernels.linear(self.kernels.gated_activation(gate, up, self.activation), self.down)

    def parts(self) -> dict[str, Any]:
        """Its part of `LayerParts`."""
        return {"up": self.gate_up, "is_gated": True, "activation": self.activation, "down": self.down}


class PlainFeedForward:
    """down(act(up(x)))."""

    def __init__(self, kernels: Kernels, up: Any, down: Any, activation: ActivationKind) -> None:
        self.kernels, self.up, self.down, self.activation = kernels, up, down, activation

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        inner = self.kernels.activation(self.kernels.linear(x, self.up), self.activation)
        return self.kernels.linear(inner, self.down)

    def parts(self) -> dict[str, Any]:
        """Its part of `LayerParts`."""
        return {"up": self.up, "is_gated": False, "activation": self.activation, "down": self.down}


def take_feed_forward(
    spec: FeedForwardSpec, hidden_size: int, names: WeightNames, prefix: str, kernels: Kernels, weights: WeightSource
) -> FeedForward:
    """The feed-forward that `spec` describes, with its weights."""
    up = take_linear(
        weights,
        kernels,
        [prefix + name for name in names.gate_up],
        (spec.intermediate_size,) * (2 if spec.gated else 1),
        hidden_size,
        bias=spec.bias,
        transposed=names.transposed,
    )
    down = take_linear(
        weights,
        kernels,
        [prefix + names.down],
        (hidden_size,),
        spec.intermediate_size,
        bias=spec.bias,
        transposed=names.transposed,
    )
    made = GatedFeedForward if spec.gated else PlainFeedForward
    return made(kernels, up, down, spec.activation)
