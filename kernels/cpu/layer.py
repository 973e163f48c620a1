"""A whole decoder layer of the compiled library: native/layer.c, whose structures are filled here once."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.cpu.library import Library
from quire.kernels.cpu.linear import KINDS, PackedLinear
from quire.kernels.cpu.paged import KINDS as CACHE_KINDS
from quire.kernels.cpu.paged import check_caches, derived_of
from quire.kernels.cpu.pointwise import KINDS as ACTIVATIONS
from quire.kernels.interface import AttentionPlan
from quire.kernels.layer import LayerParts, NormParts, WholeLayer


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("is_layer_norm", c_int), ("eps", c_float))


class _Matrix(Structure):
    _fields_ = (("kind", c_int64), ("inputs", c_int64), ("outputs", c_int64), ("weights", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    _fields_ = (
        ("norms", _Norm * 2),
        *((name, _Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, c_void_p) for name in ("head_norm", "turns")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim", "half", "window", "is_gated", "activation")),
        *((name, c_float) for name in ("head_eps", "scale")),
    )


class _Step(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("positions", "slots", "starts", "lens", "tables")),
        *((name, c_int64) for name in ("table_stride", "sequences", "rows")),
    )


@dataclass(frozen=True)
class _Derived:
    """A plan and its positions as native/layer.c reads them."""

    step: _Step
    positions: Tensor


class Layers:
    """Makes layers at one instruction set."""

    def __init__(self, library: Library) -> None:
        pointer, size = c_void_p, c_int64
        arguments = (POINTER(_Layer), POINTER(_Step), pointer, pointer, pointer, size, size)
        self._call = library.function("layer", arguments, c_int)

    def make(self, parts: LayerParts) -> WholeLayer:
        """`parts` as one call; TypeError where a tensor is not float32."""
        kept: list[Tensor] = []
        layer = _Layer(
            norms=(_Norm * 2)(_norm(parts.norm, kept), _norm(parts.feed_forward_norm, kept)),
            **{name: _matrix(getattr(parts, name)) for name in ("qkv", "out", "up", "down")},
            heads=parts.heads,
            kv_heads=parts.kv_heads,
            dim=parts.head_dim,
            window=parts.window or 0,
            is_gated=parts.is_gated,
            activation=ACTIVATIONS[parts.activation],
            scale=parts.scale,
        )
        if parts.head_norm is not None:
            layer.head_norm, layer.head_eps = _address(parts.head_norm.weight, kept), parts.head_norm.eps
        if parts.cos_sin is not None:
            layer.turns, layer.half = _address(parts.cos_sin, kept), parts.cos_sin.shape[-1]
        return _Compiled(self._call, layer, parts, kept)


class _Compiled:
    """One layer; keeps what its structure has the addresses of."""

    def __init__(self, call: Callable[..., int], layer: _Layer, parts: LayerParts, kept: list[Tensor]) -> None:
        self._call, self._layer, self._dim = call, byref(layer), parts.head_dim
        self._kept = (layer, parts, kept)

    def __call__(self, x: Tensor, positions: Tensor, plan: AttentionPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x, with the layer's part added to it in place."""
        derived: _Derived | None = plan.derived.get(_Derived)
        if derived is None:
            derived = plan.derived[_Derived] = _derive(plan, positions)
        check_caches(k_cache, v_cache, self._dim)
        x = x.contiguous()
        keys, values = k_cache.data_ptr(), v_cache.data_ptr()
        kind, block_size = CACHE_KINDS[k_cache.dtype], k_cache.shape[2]
        if self._call(self._layer, byref(derived.step), x.data_ptr(), keys, values, block_size, kind):
            raise MemoryError(f"no memory for a layer of {x.shape[0]} rows")
        return x


def _derive(plan: AttentionPlan, positions: Tensor) -> _Derived:
    positions = positions.to(torch.int64).contiguous()
    derived = derived_of(plan)
    return _Derived(_Step(positions.data_ptr(), derived.slots, *derived.index, len(positions)), positions)


def _address(tensor: Tensor, kept: list[Tensor]) -> int:
    if tensor.dtype != torch.float32:
        raise TypeError(f"a layer's norms and tables are float32; this tensor is {tensor.dtype}")
    kept.append(tensor.contiguous())
    return kept[-1].data_ptr()


def _norm(norm: NormParts, kept: list[Tensor]) -> _Norm:
    bias = None if norm.bias is None else _address(norm.bias, kept)
    return _Norm(_address(norm.weight, kept), bias, norm.is_layer_norm, norm.eps)


def _matrix(packed: PackedLinear) -> _Matrix:
    bias = None if packed.padded_bias is None else packed.padded_bias.data_ptr()
    size = packed.in_features, packed.out_features
    return _Matrix(KINDS[packed.precision], *size, packed.data.data_ptr(), bias)
