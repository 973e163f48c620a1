"""Reading safetensors files: every claim of the header checked first, then plain positioned reads, never a mapping.

The format: 8 bytes of little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data,
without holes (https://huggingface.co/docs/safetensors). A file that was cut while it was mapped would kill the process
(SIGBUS); a positioned read comes back short, and is named.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire.engine.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 200_000
READ_BYTES = 64 * 1024 * 1024
"""Bytes a read; progress is reported after each."""
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What weights may be stored in."""
DOWNLOAD_AGAIN = "download the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header; `begin` and `end` are offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file whose header has been checked. `entries` maps each name to where it lies."""

    def __init__(self, path: Path, model: str) -> None:
        """Raises ModelError when anything in the header is not as the format says (M10, M11, M14)."""
        self.path, self.model = path, model
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self.fault("file unreadable", error.strerror or str(error), "check the file") from None
        try:
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def fault(self, what: str, why: str, fix: str = DOWNLOAD_AGAIN) -> ModelError:
        """A ModelError about this file."""
        return ModelError(self.model, what, self.path.name, why, fix)

    def read(self, entry: TensorEntry, on_bytes: Callable[[int], None]) -> Tensor:
        """The tensor of an entry whose dtype is in FLOAT_DTYPES; `on_bytes` hears how many bytes each read brought."""
        data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        view = data.numpy().data
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done : done + READ_BYTES]], entry.begin + done)
            if not count:
                raise self.fault("file truncated", f"it ends at byte {entry.begin + done}, inside {entry.name}")
            done += count
            on_bytes(count)
        return data.view(FLOAT_DTYPES[entry.dtype]).view(entry.shape)

    def _read_header(self) -> dict[str, TensorEntry]:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise self.fault("no regular file", "a folder, a pipe or a device stands in its place")
        size = status.st_size
        if size < 8:
            raise self.fault("file truncated", f"{size} bytes, expected at least 8 of header length")
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if length > MAX_HEADER_BYTES:
            raise self.fault("bad header", f"a header of {length} bytes is announced, allowed are {MAX_HEADER_BYTES}")
        if length > size - 8:
            raise self.fault(
                "file truncated", f"expected a header of {length} bytes and the data after it, found {size - 8} bytes"
            )
        entries = self._check_entries(self._parse_header(os.pread(self._descriptor, length, 8)), 8 + length)
        self._check_layout(entries, 8 + length, size)
        return entries

    def _parse_header(self, data: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            names = dict(pairs)
            if len(names) != len(pairs):
                raise ValueError("a name stands twice")
            return names

        try:
            header = json.loads(data.decode("utf-8"), object_pairs_hook=once)
        except UnicodeDecodeError as error:
            raise self.fault("bad header", f"no UTF-8 at byte {error.start} of the header") from None
        except (ValueError, RecursionError) as error:
            raise self.fault("bad header", f"no JSON: {error}") from None
        if not isinstance(header, dict):
            raise self.fault("bad header", f"expected a JSON object, found {type(header).__name__}")
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise self.fault("bad header", f"{len(header)} tensors, allowed are {MAX_TENSORS}")
        return header

    def _check_entries(self, header: dict[str, Any], data_begin: int) -> dict[str, TensorEntry]:
        """dtype known, shape and offsets sane and in agreement."""
        unknown = [name for name, value in header.items() if _field(value, "dtype") not in DTYPE_BITS]
        if unknown:
            kinds = sorted({str(_field(header[name], "dtype"))[:20] for name in unknown})
            raise self.fault(
                "unknown dtype",
                f"{', '.join(kinds[:5])} in {list_names(unknown)}",
                "use weights in bfloat16, float16 or float32",
            )
        entries = {}
        for name, value in header.items():
            shape, offsets = _counts(_field(value, "shape")), _counts(_field(value, "data_offsets"))
            if shape is None or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
                raise self.fault("bad header", f"shape or data_offsets of {name[:200]} are not as the format says")
            bits = math.prod(shape) * DTYPE_BITS[value["dtype"]]
            if bits != 8 * (offsets[1] - offsets[0]):
                raise self.fault(
                    "bad header",
                    f"{name[:200]} of shape {list(shape)} and dtype {value['dtype']} needs {bits // 8} bytes, "
                    f"data_offsets give it {offsets[1] - offsets[0]}",
                )
            entries[name] = TensorEntry(name, value["dtype"], shape, data_begin + offsets[0], data_begin + offsets[1])
        return entries

    def _check_layout(self, entries: dict[str, TensorEntry], data_begin: int, size: int) -> None:
        """Tensors follow each other without hole or overlap, and the last ends where the file does."""
        expected = data_begin
        for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
            if entry.begin != expected:
                raise self.fault("bad header", f"{entry.name[:200]} begins at byte {entry.begin}, expected {expected}")
            expected = entry.end
        if expected > size:
            raise self.fault("file truncated", f"expected {expected} bytes, found {size}")
        if expected < size:
            raise self.fault("trailing bytes", f"expected {expected} bytes, found {size}")


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of integers from 0 to 2^62 as a tuple; None for anything else."""
    if not isinstance(value, list) or len(value) > 16:
        return None
    if not all(type(item) is int and 0 <= item < 2**62 for item in value):
        return None
    return tuple(value)


def list_names(names: list[str]) -> str:
    """The first five names, and how many there are."""
    shown = ", ".join(name[:200] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more ({len(names)} in all)"
