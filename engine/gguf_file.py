"""Reading GGUF files: every claim of the header checked first, then positioned reads, never a mapping. Torch-free.

The format (ggml's docs/gguf.md): magic, version, two counts; metadata, key -> typed value; a table of tensors; then the
data, each tensor at the next multiple of the alignment. The `gguf` package's own reader makes several numpy views of
every token and merge: 119 seconds for a vocabulary of 151,936, where the header below is walked in a fraction of one.
Long arrays stay in the file until somebody asks for them.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import ModelError

SUFFIX = ".gguf"
VERSIONS = (2, 3)
MAX_ENTRIES = 200_000
"""Of metadata keys, and of tensors."""
MAX_DIMENSIONS = 4
READ_BYTES = 1 << 20
"""The header is read in pieces of this size."""
DOWNLOAD_AGAIN = "download the file again"
OTHER_FILE = "take a file of the same model in Q8_0, Q6_K, Q4_K_M, Q4_0, F16 or BF16"

STRING, ARRAY = 8, 9
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""Value type -> how it is stored: uint8, int8, ..., float32, bool, uint64, int64, float64."""
FLOAT32 = 6
_LENGTH, _WORD = struct.Struct("<Q"), struct.Struct("<I")


@dataclass(frozen=True)
class TensorKind:
    """How a tensor's values are stored: rows of blocks of `block_size` values in `block_bytes` bytes each."""

    name: str
    block_size: int
    block_bytes: int


KINDS = {
    0: TensorKind("F32", 1, 4),
    1: TensorKind("F16", 1, 2),
    2: TensorKind("Q4_0", 32, 18),
    3: TensorKind("Q4_1", 32, 20),
    6: TensorKind("Q5_0", 32, 22),
    7: TensorKind("Q5_1", 32, 24),
    8: TensorKind("Q8_0", 32, 34),
    10: TensorKind("Q2_K", 256, 84),
    11: TensorKind("Q3_K", 256, 110),
    12: TensorKind("Q4_K", 256, 144),
    13: TensorKind("Q5_K", 256, 176),
    14: TensorKind("Q6_K", 256, 210),
    20: TensorKind("IQ4_NL", 32, 18),
    23: TensorKind("IQ4_XS", 256, 136),
    30: TensorKind("BF16", 1, 2),
}
"""Number in the file -> what can be read."""
OTHER_KINDS = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
"""What has a name and cannot."""


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, still in the file: `count` values of type `kind` from byte `begin` to `end`."""

    kind: int
    count: int
    begin: int
    end: int


Value = int | float | bool | str | GgufArray


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; `shape` with the rows first, as PyTorch has it; `begin` and `end` are offsets in the file."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    begin: int
    end: int


def is_gguf(path: Path) -> bool:
    """Whether a model's path names a GGUF file (and no folder)."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


class GgufFile:
    """An open file whose header has been checked. `metadata` by key, `tensors` by name, both in the file's order."""

    def __init__(self, path: Path, model: str) -> None:
        """Raises ModelError when anything in the header is not as the format says (M10, M11, M14, M20)."""
        self.path, self.model = path, model
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self.fault("file unreadable", error.strerror or str(error), "check the file") from None
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.fault("no regular file", "a folder, a pipe or a device stands in its place")
            self.size = status.st_size
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def fault(self, what: str, why: str, fix: str = DOWNLOAD_AGAIN) -> ModelError:
        """A ModelError about this file."""
        return ModelError(self.model, what, self.path.name, why, fix)

    def read_into(self, view: memoryview, begin: int, name: str) -> None:
        """Fill `view` from byte `begin` on; raises ModelError when the file has become shorter. `name` is for it."""
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], begin + done)
            if not count:
                raise self.fault("file truncated", f"it ends at byte {begin + done}, inside {name}")
            done += count

    def strings(self, key: str) -> list[str]:
        """The array of strings under `key`; [] without it. Raises ModelError when it is none, or no UTF-8."""
        array = self._array(key)
        if array is None:
            return []
        if array.kind != STRING:
            raise self.fault("bad metadata", f"{key} is no array of strings")
        data = self._bytes(array, key)
        found, at = [], 0
        try:
            for _ in range(array.count):
                at += 8
                end = at + _LENGTH.unpack_from(data, at - 8)[0]
                found.append(data[at:end].decode())
                at = end
        except UnicodeDecodeError as error:
            raise self.fault("bad metadata", f"{key}[{len(found)}] is no UTF-8: {error.reason}") from None
        return found

    def numbers(self, key: str) -> list[float]:
        """The array of numbers under `key`; [] without it. Raises ModelError when it is none."""
        array = self._array(key)
        if array is None:
            return []
        if array.kind not in SCALARS:
            raise self.fault("bad metadata", f"{key} is no array of numbers")
        return [value for (value,) in SCALARS[array.kind].iter_unpack(self._bytes(array, key))]

    def floats(self, tensor: GgufTensor) -> list[float]:
        """The values of a small F32 tensor."""
        if tensor.kind.name != "F32":
            raise self.fault("unsupported dtype", f"{tensor.name} is {tensor.kind.name}, expected F32")
        data = bytearray(tensor.end - tensor.begin)
        self.read_into(memoryview(data), tensor.begin, tensor.name)
        return [value for (value,) in SCALARS[FLOAT32].iter_unpack(data)]

    def _array(self, key: str) -> GgufArray | None:
        value = self.metadata.get(key)
        if value is None or isinstance(value, GgufArray):
            return value
        raise self.fault("bad metadata", f"{key} is {value!r:.80}, expected an array")

    def _bytes(self, array: GgufArray, key: str) -> bytes:
        data = bytearray(array.end - array.begin)
        self.read_into(memoryview(data), array.begin, key)
        return bytes(data)

    def _read_header(self) -> None:
        header = _Header(self)
        magic = header.take(4)
        if magic != b"GGUF":
            raise self.fault("no GGUF file", f"it begins with {magic!r}, expected b'GGUF'", "give a GGUF file")
        version = header.word()
        if version not in VERSIONS:
            turned = int.from_bytes(version.to_bytes(4, "little"), "big")
            named = f"{turned}, big-endian" if turned in VERSIONS else str(version)
            fix = "convert the model again, or download a newer file of it"
            raise self.fault("unknown GGUF version", f"version {named}, supported are 2 and 3, little-endian", fix)
        num_tensors, num_keys = header.length(), header.length()
        for what, count in (("tensors", num_tensors), ("metadata keys", num_keys)):
            if count > MAX_ENTRIES:
                raise self.fault("bad header", f"{count} {what} are announced, allowed are {MAX_ENTRIES}")
        for _ in range(num_keys):
            key = header.string("a metadata key")
            if key in self.metadata:
                raise self.fault("bad header", f"the metadata key {key[:200]} stands twice")
            self.metadata[key] = header.value(header.word(), key)
        self._check_split()
        self._read_tensors(header, num_tensors)

    def _check_split(self) -> None:
        count = self.metadata.get("split.count", 1)
        if isinstance(count, int) and count > 1:
            fix = "join the parts into one file with llama.cpp's `llama-gguf-split --merge`"
            raise self.fault("one part of several", f"the model is split into {count} files", fix)

    def _read_tensors(self, header: _Header, count: int) -> None:
        """The table of tensors: kinds known, shapes sane, each where the one before it ends, the last at the end."""
        found: dict[str, tuple[TensorKind, tuple[int, ...], int, int]] = {}
        unknown: dict[str, str] = {}
        for _ in range(count):
            name = header.string("a tensor's name")
            if name in found or name in unknown:
                raise self.fault("bad header", f"the tensor {name[:200]} stands twice")
            dimensions = header.word()
            if dimensions > MAX_DIMENSIONS:
                raise self.fault("bad header", f"{name[:200]} has {dimensions} dimensions, allowed {MAX_DIMENSIONS}")
            shape = tuple(reversed([header.length() for _ in range(dimensions)]))
            number, offset = header.word(), header.length()
            if number not in KINDS:
                unknown[name] = OTHER_KINDS.get(number, f"number {number}")
                continue
            found[name] = (KINDS[number], shape, offset, self._tensor_bytes(name, KINDS[number], shape))
        if unknown:
            kinds = ", ".join(sorted(set(unknown.values()))[:5])
            first = next(iter(unknown))
            why = f"{kinds} in {len(unknown)} tensors, first {first[:200]}; supported are "
            why += ", ".join(kind.name for kind in KINDS.values())
            raise self.fault("unsupported quantization", why, OTHER_FILE)
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.fault("bad metadata", f"general.alignment is {alignment!r:.80}, expected a power of two")
        self._place(found, header.at, alignment)

    def _tensor_bytes(self, name: str, kind: TensorKind, shape: tuple[int, ...]) -> int:
        """Bytes of the data."""
        columns = shape[-1] if shape else 1
        if columns % kind.block_size:
            why = f"{name[:200]} is {kind.name} with rows of {columns}, expected a multiple of {kind.block_size}"
            raise self.fault("bad header", why)
        return math.prod(shape) // kind.block_size * kind.block_bytes

    def _place(
        self, found: dict[str, tuple[TensorKind, tuple[int, ...], int, int]], header_end: int, alignment: int
    ) -> None:
        def aligned(at: int) -> int:
            return -(-at // alignment) * alignment

        data_begin = end = aligned(header_end)
        for name, (kind, shape, offset, size) in found.items():
            begin = data_begin + offset
            if begin != aligned(end):
                raise self.fault("bad header", f"{name[:200]} begins at byte {begin}, expected {aligned(end)}")
            end = begin + size
            self.tensors[name] = GgufTensor(name, kind, shape, begin, end)
        if end > self.size and found:
            raise self.fault("file truncated", f"expected {end} bytes, found {self.size}")
        if self.size > aligned(max(end, header_end)):
            raise self.fault("trailing bytes", f"expected {aligned(end)} bytes, found {self.size}")


class _Header:
    """A place in the header that moves on as values are taken; the file is read as far as the place is."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.at, self.data = file, 0, bytearray()

    def take(self, count: int, what: str = "the header") -> bytes:
        """The next `count` bytes."""
        self._need(self.at + count, what)
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def word(self) -> int:
        """The next uint32."""
        value: int = _WORD.unpack(self.take(4))[0]
        return value

    def length(self) -> int:
        """The next uint64."""
        value: int = _LENGTH.unpack(self.take(8))[0]
        return value

    def string(self, what: str) -> str:
        """The next string; `what` is for messages."""
        data = self.take(self.length(), what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            why = f"{what[:200]} is no UTF-8: {error.reason} at byte {self.at - len(data) + error.start}"
            raise self.file.fault("bad header", why) from None

    def value(self, kind: int, key: str) -> Value:
        """The next value; an array only by its place."""
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            raise self.file.fault("bad header", f"{key[:200]} is of type {kind}, expected 0 to 12")
        (value,) = SCALARS[kind].unpack(self.take(SCALARS[kind].size))
        found: Value = shortest(value) if kind == FLOAT32 else value
        return found

    def _array(self, key: str) -> GgufArray:
        kind, count, begin = self.word(), self.length(), self.at
        if kind in SCALARS:
            self._need(begin + count * SCALARS[kind].size, key)
            self.at = begin + count * SCALARS[kind].size
        elif kind == STRING:
            self._need(begin + 8 * count, key)  # before a count is believed
            self._skip_strings(count, key)
        else:
            raise self.file.fault("bad header", f"{key[:200]} is an array of type {kind}, expected scalars or strings")
        return GgufArray(kind, count, begin, self.at)

    def _skip_strings(self, count: int, key: str) -> None:
        at, end, unpack = self.at, len(self.data), _LENGTH.unpack_from
        for _ in range(count):
            if at + 8 > end:
                self._need(at + 8, key)
                end = len(self.data)
            at += 8 + unpack(self.data, at)[0]
        self._need(at, key)
        self.at = at

    def _need(self, end: int, what: str) -> None:
        """Have the file's first `end` bytes."""
        if end <= len(self.data):
            return
        if end > self.file.size:
            what = re.sub(r"[^\x20-\x7e]", "?", what[:200])
            why = f"{what} ends at byte {end}, found {self.file.size} bytes"
            raise self.file.fault("file truncated", why)
        have = len(self.data)
        more = bytearray(min(max(end - have, READ_BYTES), self.file.size - have))
        self.file.read_into(memoryview(more), have, "the header")
        self.data += more


def shortest(value: float) -> float:
    """The float64 with the fewest digits that a float32 could have come from: 1e-5, not 9.99999974e-06."""
    for digits in range(6, 9):
        rounded = float(f"{value:.{digits}g}")
        if (
            math.isfinite(rounded)
            and abs(rounded) < 3.4e38
            and SCALARS[FLOAT32].unpack(SCALARS[FLOAT32].pack(rounded)) == (value,)
        ):
            return rounded
    return value
