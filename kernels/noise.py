"""Sampling noise: one counter-based hash, so that a sampled token is a function of the request and nothing else.

argmax(logit / T + Gumbel noise) is a sample of softmax(logit / T) (Gumbel, 1954; Maddison et al., 2014). The noise of
a token is a pure function of (seed, choice, absolute position, token id): no stream, no state, so neighbours in the
batch, preemption and replay change nothing. Integer arithmetic modulo 2^64 is exact on every device; only the two
logarithms are floating point.

The mix is the finalizer of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def _signed(value: int) -> int:
    """The int64 with the bits of `value` modulo 2^64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """SplitMix64's finalizer on a Python integer."""
    value &= _MASK
    value = (value ^ (value >> 30)) * _MULTIPLIER_1 & _MASK
    value = (value ^ (value >> 27)) * _MULTIPLIER_2 & _MASK
    return value ^ (value >> 31)


def row_key(seed: int, choice: int) -> int:
    """Hash (seed, choice) into an int64: what `noise_key` makes of them before it takes the position in.

    `seed` may be any integer; its low 64 bits count.
    """
    return _signed(_mix((_mix(seed + _INCREMENT) ^ _mix(choice + 1)) + _INCREMENT))


def noise_key(seed: int, choice: int, position: int) -> int:
    """Hash (seed, choice, position) into the int64 key of one sampled token's noise.

    `position` is the absolute position of the token that is being chosen.
    """
    return next_key(row_key(seed, choice), position)


def next_key(key: int, position: int) -> int:
    """Take a position into a `row_key`: the `noise_key`."""
    return _signed(_mix((key ^ position) + _INCREMENT))


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, for int64 `keys` (`noise_key`) and int64 `token_ids`, broadcast together."""
    bits = keys + (token_ids + 1) * _signed(_INCREMENT)
    bits = (bits ^ _shift(bits, 30)) * _signed(_MULTIPLIER_1)
    bits = (bits ^ _shift(bits, 27)) * _signed(_MULTIPLIER_2)
    bits = bits ^ _shift(bits, 31)
    # 53 bits, so that the rare large noise is not quantised: it comes from uniforms near 0, where float32 is fine.
    uniform = (_shift(bits, 11).to(torch.float32) + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform.clamp_(max=_LARGEST_BELOW_ONE)))


def gumbel_noise(seed: int, choice: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, one value for each of `token_ids` (int64, any shape)."""
    key = torch.tensor(noise_key(seed, choice, position), dtype=torch.int64, device=token_ids.device)
    return gumbel(key, token_ids)
