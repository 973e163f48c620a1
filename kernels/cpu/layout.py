"""How many bytes a linear layer takes in the layout of `native/matmul.h`, before it is packed. Torch-free."""

from __future__ import annotations

OUT_BLOCK = 64
"""Outputs lie in blocks of so many."""
UNITS = {
    "float32": (1, 4),
    "bfloat16": (2, 4),
    "float16": (1, 2),
    "int8": (64, 66),
    "int4": (32, 18),
    "int8-w8a8": (64, 70),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
}
"""Precision -> positions along the input that are packed together, and the bytes that they take for one output."""
KEPT = ("q8_0", "q4_0")
"""Of GGUF files: packed code by code, with the scales of the file."""
PRECISE = {"int4": "int8"}
"""Precision of the layers -> precision of a matrix whose errors are seen directly, where it is another one."""


def packed_bytes(out_features: int, in_features: int, precision: str, *, bias: bool, precise: bool) -> int:
    """Of a weight [out, in] and its bias. `precise`: see `quire.kernels.interface.Kernels.pack`."""
    positions, size = UNITS[PRECISE.get(precision, precision) if precise else precision]
    outputs = -(-out_features // OUT_BLOCK) * OUT_BLOCK
    return outputs * (-(-in_features // positions) * size + (4 if bias else 0))
