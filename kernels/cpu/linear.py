"""Linear layers of the compiled library: packed once, multiplied for any number of rows in one order of sums."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.cpu.layout import KEPT
from quire.kernels.cpu.library import Library

BLOCK = 64
"""Outputs that are packed together."""
SLAB_BYTES = 8 << 20
"""How much of a weight is converted at a time."""
GROUP = 32
"""Codes that share a scale."""
HUGE_PAGE = 2 << 20
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What is handed over to be packed; float32 for the others."""
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4, "int8-w8a8": 5, "q8_0": 6, "q4_0": 7}
"""Precision -> what native/matmul.h calls it. int8-w8a8 needs VNNI, and those of GGUF come as codes."""


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A linear layer as the compiled library reads it: weight [out, in] in blocks of 64 outputs."""

    out_features: int
    in_features: int
    precision: str
    data: Tensor
    """uint8, one dimension; native/matmul.h says its layout."""
    padded_bias: Tensor | None
    """float32 [out, rounded up to 64]"""

    @property
    def bias(self) -> Tensor | None:
        """float32 [out], or None."""
        return None if self.padded_bias is None else self.padded_bias[: self.out_features]

    @property
    def nbytes(self) -> int:
        """What the layer takes in memory."""
        return self.data.nbytes + (0 if self.padded_bias is None else self.padded_bias.nbytes)


class Linear:
    """Packing, the matmul and the rows of tied embeddings, at one instruction set."""

    def __init__(self, library: Library) -> None:
        self.library = library
        kind, size, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
        self._bytes: Callable[[int, int, int], int] = library.function("linear_bytes", (kind, size, size), size)
        self._huge_pages = library.function("linear_huge_pages", (address, size))
        self._pack = library.function("linear_pack", (kind, address, size, size, address, size))
        self._pack_codes = library.function("linear_pack_codes", (kind, address, address, size, size, address, size))
        self._linear = library.function("linear", (kind, address, size, size, address, address, address, size), kind)
        self._rows = library.function("linear_rows", (kind, address, size, address, size, address))

    @property
    def precisions(self) -> tuple[str, ...]:
        """What `pack` can make here."""
        return tuple(name for name, kind in KINDS.items() if name not in KEPT and self._bytes(kind, 1, 1))

    def pack(self, weight: Tensor, bias: Tensor | None, precision: str | None = None) -> PackedLinear:
        """Pack weight [out, in] (float32, bfloat16, float16) and bias [out]; `precision` None keeps the weight's own.

        Nothing of `weight` is kept, and no second copy of it is made: it is converted a slab of rows at a time.
        ValueError where the instruction set has no such precision.
        """
        if precision is None:
            precision = str(weight.dtype).removeprefix("torch.")
        if precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise ValueError(f"no linear layer in {precision} on {self.library.isa}; there are: {known}")
        kind = KINDS[precision]
        out_features, in_features = weight.shape
        data = _on_a_huge_page(self._bytes(kind, out_features, in_features))
        self._huge_pages(data.data_ptr(), data.nbytes)
        slab = max(1, SLAB_BYTES // (4 * in_features * BLOCK)) * BLOCK
        for start in range(0, out_features, slab):
            rows = weight[start : start + slab].to(DTYPES.get(precision, torch.float32)).contiguous()
            self._pack(kind, rows.data_ptr(), len(rows), in_features, data.data_ptr(), start // BLOCK)
        return PackedLinear(out_features, in_features, precision, data, _padded(bias))

    def pack_codes(self, kind: str, codes: Tensor, scales: Tensor, bias: Tensor | None) -> PackedLinear:
        """As `quire.kernels.interface.PacksCodes`; ValueError for another kind or another shape."""
        out_features, in_features = codes.shape
        if kind not in KEPT or in_features % GROUP or scales.shape != (out_features, in_features // GROUP):
            raise ValueError(f"no codes of {kind}: {list(codes.shape)} with scales {list(scales.shape)}")
        data = _on_a_huge_page(self._bytes(KINDS[kind], out_features, in_features))
        self._huge_pages(data.data_ptr(), data.nbytes)
        codes, halves = codes.to(torch.int8).contiguous(), scales.to(torch.float16).contiguous()
        self._pack_codes(
            KINDS[kind], codes.data_ptr(), halves.data_ptr(), out_features, in_features, data.data_ptr(), 0
        )
        return PackedLinear(out_features, in_features, kind, data, _padded(bias))

    def apply(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x float32 [T, in] -> float32 [T, out]; a row of the result depends on that row of x alone, bit for bit."""
        if not x.is_contiguous():
            x = x.contiguous()
        num_rows, bias = x.shape[0], packed.padded_bias
        y = torch.empty((num_rows, packed.out_features))
        failed = self._linear(
            KINDS[packed.precision],
            x.data_ptr(),
            num_rows,
            packed.in_features,
            packed.data.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            packed.out_features,
        )
        if failed:
            raise MemoryError(f"no memory for a linear layer of {num_rows} rows")
        return y

    def rows(self, token_ids: Tensor, packed: PackedLinear) -> Tensor:
        """The weight's rows token_ids int64 [T] -> float32 [T, in]."""
        token_ids = token_ids.contiguous()
        out = torch.empty((len(token_ids), packed.in_features))
        self._rows(
            KINDS[packed.precision],
            packed.data.data_ptr(),
            packed.in_features,
            token_ids.data_ptr(),
            len(token_ids),
            out.data_ptr(),
        )
        return out


def _padded(bias: Tensor | None) -> Tensor | None:
    """float32 [out, rounded up to 64]"""
    if bias is None:
        return None
    padded = torch.zeros(-(-len(bias) // BLOCK) * BLOCK)
    padded[: len(bias)] = bias
    return padded


def _on_a_huge_page(num_bytes: int) -> Tensor:
    """uint8 [num_bytes], untouched, from a border of huge pages on where it is larger than one: no end is left over."""
    if num_bytes < HUGE_PAGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    room = torch.empty(num_bytes + HUGE_PAGE, dtype=torch.uint8)
    start = -room.data_ptr() % HUGE_PAGE
    return room[start : start + num_bytes]
