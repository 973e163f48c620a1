"""Tables of cosines and sines for rotary positions, of every supported type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.engine.models.config import RopeSpec
from quire.engine.models.norm import RMSNorm
from quire.kernels import Kernels


def rope_table(spec: RopeSpec, num_positions: int) -> Tensor:
    """Cosines and sines, float32 [num_positions, 2, rotary_dim // 2], for positions 0 .. num_positions - 1.

    A position's row never depends on how long a sequence is. Where a type switches with length (dynamic, longrope),
    `num_positions`, the longest sequence that will be served, decides once.
    """
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(spec, num_positions))
    return torch.stack((angles.cos(), angles.sin()), dim=1) * spec.attention_factor


def inverse_frequencies(spec: RopeSpec, num_positions: int) -> Tensor:
    """Radians a position, float32 [rotary_dim // 2], one for each pair of features."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    match spec.kind:
        case "default":
            return spec.theta**-exponents
        case "linear":  # Chen et al., 2023
            return spec.theta**-exponents / spec.factor
        case "dynamic":
            length = max(num_positions, spec.max_position_embeddings)
            growth = spec.factor * length / spec.max_position_embeddings - (spec.factor - 1)
            theta = spec.theta * growth ** (spec.rotary_dim / (spec.rotary_dim - 2))
            return torch.pow(theta, -exponents)
        case "yarn":
            return _yarn(spec, spec.theta**-exponents)
        case "longrope":  # Ding et al., 2024
            factors = spec.long_factor if num_positions > spec.original_max_position_embeddings else spec.short_factor
            return spec.theta**-exponents / torch.tensor(factors, dtype=torch.float32)
        case "llama3":
            return _llama3(spec, spec.theta**-exponents)


def _yarn(spec: RopeSpec, frequencies: Tensor) -> Tensor:
    """Slow frequencies are interpolated, fast ones kept, with a ramp between (Peng et al., 2023, section 3.2)."""

    def feature_of(rotations: float) -> float:
        wavelength = spec.original_max_position_embeddings / (rotations * 2 * math.pi)
        return spec.rotary_dim * math.log(wavelength) / (2 * math.log(spec.theta))

    low, high = feature_of(spec.beta_fast), feature_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(len(frequencies), dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / spec.factor * ramp + frequencies * (1 - ramp)


def _llama3(spec: RopeSpec, frequencies: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, a smooth step between."""
    turns = spec.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = ((turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0, 1)
    return frequencies / spec.factor * (1 - keep) + frequencies * keep


class Rope:
    """Rotates queries and keys by their positions."""

    def __init__(self, kernels: Kernels, table: Tensor) -> None:
        self.kernels, self.table = kernels, table

    def __call__(self, x: Tensor, positions: Tensor, norm: RMSNorm | None) -> Tensor:
        """x [T, heads, D], normed first where there is a norm, positions int64 [T] -> [T, heads, D]."""
        if norm is None:
            return self.kernels.rope(x, positions, self.table)
        return self.kernels.rope(x, positions, self.table, norm=norm.weight, eps=norm.eps)


class NoRope:
    """Positions reach the layer another way, or not at all."""

    def __call__(self, x: Tensor, positions: Tensor, norm: RMSNorm | None) -> Tensor:
        """x, normed where there is a norm."""
        return x if norm is None else norm(x)
