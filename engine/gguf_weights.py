"""Weights out of a GGUF file: plain ones as they are, quantized ones worked out piece by piece, or as codes and scales.

Q8_0 and Q4_0 are simple enough to be read here; the other quantizations are worked out by the `gguf` package, which is
an extra of this one (`pip install 'quire[gguf]'`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.gguf_config import permuted_heads
from quire.engine.gguf_file import GgufFile, GgufTensor
from quire.engine.models.config import ModelConfig
from quire.engine.models.shapes import common_kind, weight_shapes
from quire.engine.safetensors_file import list_names

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE_VALUES = 4 << 20
"""Values read and worked out at a time."""
GROUP = 32
"""Values that share a scale in Q8_0 and Q4_0."""
OTHER_MODEL = "the file may be of an unusual model or incomplete; download it again or take another file of the model"


class GgufWeights:
    """Weights of one open file, read one at a time; a `WeightSource`."""

    def __init__(
        self,
        file: GgufFile,
        config: ModelConfig,
        dtype_of: Callable[[tuple[int, ...]], torch.dtype],
        check: bool,
        progress: Callable[[int, int], None],
        kept: Sequence[str] = (),
    ) -> None:
        """`dtype_of` says by shape what is handed out; `kept` are kinds of quantized matrices that stay so.

        Raises ModelError where the file does not fit (M14).
        """
        self.kept = tuple(kept)
        self.file, self.config, self.dtype_of, self.check, self.progress = file, config, dtype_of, check, progress
        self.tensors = match_tensors(file, config)
        self.bytes_taken = self._bytes_read = 0
        self._bytes_total = sum(tensor.end - tensor.begin for tensor in self.tensors.values())
        self._dequantize = _package(file) if any(map(_wants_package, self.tensors.values())) else None

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read, work out, check, cast. Raises ModelError when the file has shrunk, or `check` finds NaN or Inf."""
        tensor = self.tensors[name]
        columns = shape[-1]
        found = torch.empty(math.prod(shape) // columns, columns, dtype=self.dtype_of(shape))
        step = max(1, PIECE_VALUES // columns)
        for first in range(0, len(found), step):
            piece = self._values(tensor, first, min(step, len(found) - first))
            if self.check and not torch.isfinite(piece).all():
                raise self.file.fault("NaN or Inf in the weights", f"tensor {name}", "download the model again")
            found[first : first + len(piece)].copy_(piece)
        self.bytes_taken += found.nbytes
        return self._in_order(name, found.view(shape))

    def common_kind(self, names: Sequence[str]) -> str | None:
        """What the linear layers `names` are all quantized in, where that is kept."""
        return common_kind(self.config, self.kept, names)

    def take_codes(self, name: str) -> tuple[Tensor, Tensor]:
        """(codes int8 [out, in], scales float32 [out, in / 32]) of a Q8_0 or Q4_0 matrix; counts as taken.

        A weight is its code times its group's scale; codes of Q4_0 lie within -8..7.
        """
        tensor = self.tensors[name]
        kind = tensor.kind.name
        rows, columns = tensor.shape
        codes = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows, columns // GROUP)
        step = max(1, PIECE_VALUES // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            some_codes, some_scales = _codes(kind, self._read(tensor, first, count))
            codes[first : first + count] = some_codes.view(count, columns)
            scales[first : first + count] = some_scales.view(count, -1)
        if self.check and not torch.isfinite(scales).all():
            raise self.file.fault("NaN or Inf in the weights", f"tensor {name}", "download the model again")
        self.bytes_taken += codes.nbytes + scales.nbytes
        return self._in_order(name, codes), self._in_order(name, scales)

    def _values(self, tensor: GgufTensor, first: int, count: int) -> Tensor:
        """`count` rows from `first` on, as stored or float32."""
        data = self._read(tensor, first, count)
        kind = tensor.kind.name
        if kind in PLAIN:
            return data.view(PLAIN[kind]).view(count, -1)
        if kind in ("Q8_0", "Q4_0"):
            codes, scales = _codes(kind, data)
            return (codes * scales[:, None]).view(count, -1)
        assert self._dequantize is not None
        return torch.from_numpy(self._dequantize(kind, data.view(count, -1).numpy()))

    def _read(self, tensor: GgufTensor, first: int, count: int) -> Tensor:
        """The bytes of `count` rows, uint8 [bytes]."""
        kind = tensor.kind
        row = (tensor.shape[-1] if tensor.shape else 1) // kind.block_size * kind.block_bytes
        data = torch.empty(count * row, dtype=torch.uint8)
        self.file.read_into(data.numpy().data, tensor.begin + first * row, tensor.name)
        self._bytes_read += len(data)
        self.progress(self._bytes_read, self._bytes_total)
        return data

    def _in_order(self, name: str, rows: Tensor) -> Tensor:
        """The rows of queries and keys in Hugging Face's order."""
        heads = permuted_heads(self.file, self.config, name)
        if heads is None:
            return rows
        return rows.view(heads, len(rows) // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def match_tensors(file: GgufFile, config: ModelConfig) -> dict[str, GgufTensor]:
    """The tensors that the model needs, by name. Raises ModelError for one missing, of another shape, or unknown."""
    expected = weight_shapes(config)
    missing = [name for name in expected if name not in file.tensors]
    shapes = [
        f"{name} is {list(file.tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in file.tensors and file.tensors[name].shape != shape
    ]
    extra = [
        name
        for name in file.tensors
        if name not in expected and not any(re.fullmatch(pattern, name) for pattern in config.names.ignorable)
    ]
    for what, faults in (("tensors missing", missing), ("wrong tensor shapes", shapes), ("unknown tensors", extra)):
        if faults:
            raise file.fault(what, f"{len(faults)}: {list_names(faults)}", OTHER_MODEL)
    return {name: file.tensors[name] for name in expected}


def _codes(kind: str, data: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks, uint8 [bytes] -> (codes int8 [blocks, 32], scales float32 [blocks]).

    A block of Q8_0 is a float16 scale and 32 int8; one of Q4_0 a float16 scale and 16 bytes, the low halves being
    values 0 to 15 and the high halves 16 to 31, each with 8 added.
    """
    blocks = data.view(-1, 34 if kind == "Q8_0" else 18)
    scales = blocks[:, :2].contiguous().view(torch.float16).float().view(-1)
    stored = blocks[:, 2:]
    if kind == "Q8_0":
        return stored.contiguous().view(torch.int8), scales
    return torch.cat((stored & 15, stored >> 4), dim=1).view(torch.int8) - 8, scales


def _wants_package(tensor: GgufTensor) -> bool:
    return tensor.kind.name not in (*PLAIN, "Q8_0", "Q4_0")


def _package(file: GgufFile) -> Callable[[str, Any], Any]:
    """What works out (kind's name, uint8 [rows, bytes]) to float32 [rows, columns]."""
    try:
        import gguf.quants
        from gguf.constants import GGMLQuantizationType
    except ImportError:
        kinds = sorted({tensor.kind.name for tensor in file.tensors.values() if _wants_package(tensor)})
        why = f"weights in {', '.join(kinds)} need the gguf package, which is not installed"
        fix = "pip install 'quire[gguf]', or take a file in Q8_0, Q4_0, F16 or BF16"
        raise ModelError(file.model, "package missing", file.path.name, why, fix) from None
    return lambda kind, data: gguf.quants.dequantize(data, GGMLQuantizationType[kind])
