"""Norms, rotary embedding and activations of the compiled library: float32 in, float32 out, a new tensor each time.

A call costs a few microseconds beside its arithmetic, so functions are looked up once and tensors pass as addresses.
Inputs may be views with strided rows (the heads of one matmul's output, its two halves); other layouts are copied.
A row of a result depends on that row alone, bit for bit, whatever the number of rows and threads.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from quire.kernels.cpu.library import Library
from quire.kernels.interface import Activation

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""As `native/activation.c` numbers them."""
_FLOAT = torch.float32


class Pointwise:
    """The pointwise operations of `quire.kernels.interface.Kernels`, and two that fuse what stands side by side.

    Each raises TypeError for a tensor that is not float32.
    """

    def __init__(self, library: Library) -> None:
        p, n, f = c_void_p, c_int64, c_float
        self._rms_norm = library.function("rms_norm", (p, n, n, p, n, p, n, n, f))
        self._add_rms_norm = library.function("add_rms_norm", (p, n, p, n, p, p, p, n, n, f))
        self._layer_norm = library.function("layer_norm", (p, n, p, p, p, n, n, f))
        self._norm_rope = library.function("norm_rope", (p, n, p, n, f, p, p, p, n, n, n, n))
        self._activation = library.function("activation", (c_int, p, n, p, n, p, n, n))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., H] / sqrt(mean(x^2) + eps) * weight [H], or [heads, H] for x [T, heads, H]."""
        size = x.shape[-1]
        if x.dim() == 3:
            (x, stride), inner = _heads(x), x.shape[1]
        else:
            (x, stride), inner = _rows(x), 1
        weight = _dense(weight)
        out = _empty(x)
        weight_rows, rows = weight.numel() // size, x.numel() // size
        self._rms_norm(x.data_ptr(), stride, inner, weight.data_ptr(), weight_rows, out.data_ptr(), rows, size, eps)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`rms_norm` of x + residual [..., H], and that sum."""
        size = x.shape[-1]
        (x, x_stride), (residual, residual_stride), weight = _rows(x), _rows(residual), _dense(weight)
        total, out = _empty(x), _empty(x)
        self._add_rms_norm(
            x.data_ptr(),
            x_stride,
            residual.data_ptr(),
            residual_stride,
            weight.data_ptr(),
            total.data_ptr(),
            out.data_ptr(),
            x.numel() // size,
            size,
            eps,
        )
        return out, total

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension of x [..., H]."""
        size = x.shape[-1]
        (x, stride), weight, bias = _rows(x), _dense(weight), None if bias is None else _dense(bias)
        out = _empty(x)
        self._layer_norm(
            x.data_ptr(),
            stride,
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            x.numel() // size,
            size,
            eps,
        )
        return out

    def rope(self, x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
        """Rotate the first R features of each head of x [T, heads, D]; cos_sin [max_positions, 2, R // 2]."""
        return self.norm_rope(x, None, 0.0, positions, cos_sin)

    def norm_rope(self, x: Tensor, weight: Tensor | None, eps: float, positions: Tensor, cos_sin: Tensor) -> Tensor:
        """`rope` of `rms_norm(x, weight, eps)` in one pass, to the same bits; without a weight, of x itself.

        x [T, heads, D], weight [heads, D] or [D], positions int64 [T] below cos_sin's length.
        """
        rows, heads, size = x.shape
        (x, stride), cos_sin = _heads(x), _dense(cos_sin)
        weight = None if weight is None else _dense(weight)
        if positions.dtype is not torch.int64 or not positions.is_contiguous():
            positions = positions.to(torch.int64).contiguous()
        out = _empty(x)
        self._norm_rope(
            x.data_ptr(),
            stride,
            None if weight is None else weight.data_ptr(),
            1 if weight is None else weight.numel() // size,
            eps,
            positions.data_ptr(),
            cos_sin.data_ptr(),
            out.data_ptr(),
            rows,
            heads,
            cos_sin.shape[-1],
            size,
        )
        return out

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up, elementwise, of two tensors of one shape."""
        (gate, gate_stride), (up, up_stride) = _rows(gate), _rows(up)
        size = gate.shape[-1]
        out = _empty(gate)
        self._activation(
            KINDS[kind],
            gate.data_ptr(),
            gate_stride,
            up.data_ptr(),
            up_stride,
            out.data_ptr(),
            gate.numel() // size,
            size,
        )
        return out

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x), elementwise."""
        x, stride = _rows(x)
        size = x.shape[-1]
        out = _empty(x)
        self._activation(KINDS[kind], x.data_ptr(), stride, None, 0, out.data_ptr(), x.numel() // size, size)
        return out


def _empty(x: Tensor) -> Tensor:
    """Of x's shape, without gaps; several times as fast as `torch.empty` with a shape."""
    return torch.empty_like(x) if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x seen as rows of its last dimension, and how far apart they begin; a copy where that is not one number."""
    if x.dtype is not _FLOAT:
        raise _not_float32(x)
    if x.dim() == 2 and x.stride(1) == 1:
        return x, x.stride(0)
    return x.contiguous(), x.shape[-1]


def _heads(x: Tensor) -> tuple[Tensor, int]:
    """x [T, heads, D] whose heads lie side by side, and how far apart the T rows begin; a copy where they do not."""
    if x.dtype is not _FLOAT:
        raise _not_float32(x)
    _, heads, size = x.shape
    if x.stride(2) == 1 and x.stride(1) == size:
        return x, x.stride(0)
    return x.contiguous(), heads * size


def _dense(x: Tensor) -> Tensor:
    if x.dtype is not _FLOAT:
        raise _not_float32(x)
    return x if x.is_contiguous() else x.contiguous()


def _not_float32(x: Tensor) -> TypeError:
    return TypeError(f"the compiled kernels compute in float32; this tensor is {str(x.dtype).removeprefix('torch.')}")
