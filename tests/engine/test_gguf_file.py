"""GGUF files that lie, and the reader that says so (RELIABILITY M10, M11, M14, M20)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from quire.engine.errors import ModelError
from quire.engine.gguf_file import GgufFile, shortest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """An entry of the table; `shape` as GGUF has it, columns first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    pairs: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    padded: bool = True,
) -> bytes:
    """A whole file; `counts` announces other numbers of tensors and pairs."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32 if padded else 0) + data


LLAMA = pair("general.architecture", 8, text("llama"))
FOUR = tensor("a", (4,), 0, 0)
DATA = struct.pack("<4f", 1, 2, 3, 4) + bytes(16)
SOUND = file_of([LLAMA], [FOUR], DATA)


def read(path: Path, data: bytes) -> GgufFile:
    (path / "m.gguf").write_bytes(data)
    return GgufFile(path / "m.gguf", "tiny")


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -5)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 1e-5)
    writer.add_float64("f64", 1 / 3)
    writer.add_bool("yes", True)
    writer.add_string("text", "Zürich 東京")
    writer.add_array("words", ["", "a", "東京" * 100_000])
    writer.add_array("numbers", [1.5, -2.0])
    writer.add_array("truths", [True, False])
    writer.add_custom_alignment(64)
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.arange(3, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf", "tiny")
    found = {key: file.metadata[key] for key in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64")}
    assert found == {
        **{"u8": 200, "i8": -5, "u16": 60_000, "i16": -30_000, "u32": 4_000_000_000, "i32": -2_000_000_000},
        **{"u64": 2**63, "i64": -(2**62), "f32": 1e-5, "f64": 1 / 3},
    }
    assert file.metadata["yes"] is True
    assert file.metadata["text"] == "Zürich 東京"
    assert file.strings("words") == ["", "a", "東京" * 100_000]
    assert file.numbers("numbers") == [1.5, -2.0]
    assert file.numbers("truths") == [True, False]
    assert file.strings("nothing") == file.numbers("nothing") == []
    assert [(t.name, t.kind.name, t.shape) for t in file.tensors.values()] == [
        ("first", "F32", (2, 3)),
        ("second", "F16", (3,)),
    ]
    assert file.floats(file.tensors["first"]) == [0, 1, 2, 3, 4, 5]
    assert file.tensors["second"].begin % 64 == 0
    file.close()


SPOILED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "file truncated .*ends at byte 4, found 0 bytes"),
    "seven bytes": (SOUND[:7], "file truncated"),
    "another format": (b"PK\x03\x04" + SOUND[4:], r"no GGUF file .*begins with b'PK\\x03\\x04'"),
    "version 1": (file_of([LLAMA], [], version=1), "unknown GGUF version .*version 1, supported are 2 and 3"),
    "big-endian": (file_of([LLAMA], [], version=3 << 24), "version 3, big-endian"),
    "cut in the metadata": (SOUND[:50], "file truncated .*found 50 bytes"),
    "cut by one byte": (SOUND[:-17], r"file truncated .*expected (\d+) bytes, found (\d+)"),
    "trailing bytes": (SOUND + bytes(40), "trailing bytes .*expected .* bytes, found"),
    "10^18 keys": (file_of([LLAMA], [], counts=(0, 10**18)), "1000000000000000000 metadata keys are announced"),
    "10^18 tensors": (file_of([LLAMA], [], counts=(10**18, 1)), "1000000000000000000 tensors are announced"),
    "more keys than there are": (file_of([LLAMA], [], counts=(0, 9), padded=False), "file truncated"),
    "a key twice": (file_of([LLAMA, LLAMA], []), "general.architecture stands twice"),
    "a long string": (file_of([text("k") + struct.pack("<IQ", 8, 2**60)], []), "file truncated .*k ends at byte"),
    "a long array": (file_of([pair("k", 9, struct.pack("<IQ", 4, 2**60))], []), "file truncated .*k ends at byte"),
    "a long list": (file_of([pair("k", 9, struct.pack("<IQ", 8, 2**60))], []), "file truncated .*k ends at byte"),
    "a list's long text": (
        file_of([pair("k", 9, struct.pack("<IQQQ", 8, 2, 2**60, 0))], []),
        "file truncated .*k ends at byte",
    ),
    "an array of arrays": (file_of([pair("k", 9, struct.pack("<IQ", 9, 1))], []), "k is an array of type 9"),
    "an unknown type": (file_of([pair("k", 13, b"")], []), "k is of type 13, expected 0 to 12"),
    "a key that is no UTF-8": (
        file_of([struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1)], []),
        "a metadata key is no UTF-8",
    ),
    "a tensor twice": (file_of([LLAMA], [FOUR, FOUR], DATA), "the tensor a stands twice"),
    "five dimensions": (file_of([LLAMA], [tensor("a", (1,) * 5, 0, 0)], DATA), "a has 5 dimensions, allowed 4"),
    "an unknown number": (
        file_of([LLAMA], [tensor("a", (4,), 77, 0)], DATA),
        "unsupported quantization .*number 77 in 1 tensors, first a; supported are F32, F16, Q4_0",
    ),
    "IQ2_XXS": (file_of([LLAMA], [tensor("a", (256,), 16, 0)], DATA), "IQ2_XXS in 1 tensors.*fix: take a file .*Q8_0"),
    "a row that is no block": (
        file_of([LLAMA], [tensor("a", (33,), 8, 0)], DATA),
        "a is Q8_0 with rows of 33, expected a multiple of 32",
    ),
    "a tensor elsewhere": (file_of([LLAMA], [tensor("a", (4,), 0, 32)], DATA), "a begins at byte 160, expected 128"),
    "two in one place": (
        file_of([LLAMA], [FOUR, tensor("b", (4,), 0, 0)], DATA),
        r"b begins at byte \d+, expected \d+",
    ),
    "a tensor of 2^60 values": (file_of([LLAMA], [tensor("a", (2**60,), 0, 0)], DATA), "file truncated .*expected 46"),
    "an odd alignment": (
        file_of([LLAMA, pair("general.alignment", 4, struct.pack("<I", 33))], []),
        "general.alignment is 33, expected a power of two",
    ),
    "a part of several": (
        file_of([LLAMA, pair("split.count", 2, struct.pack("<H", 3))], []),
        "one part of several .*split into 3 files; fix: join",
    ),
}


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    file = read(tmp_path, SOUND)
    assert file.floats(file.tensors["a"]) == [1, 2, 3, 4]
    file.close()


@pytest.mark.parametrize(("data", "message"), SPOILED.values(), ids=SPOILED.keys())
def test_spoiled_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, data)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("model tiny: ")
    assert "; fix: " in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for size in range(len(SOUND) - len(DATA) + 16):
        with pytest.raises(ModelError):
            read(tmp_path, SOUND[:size])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    file = read(tmp_path, SOUND)
    with (tmp_path / "m.gguf").open("r+b") as out:
        out.truncate(100)
    with pytest.raises(ModelError, match=r"file truncated .*inside a"):
        file.floats(file.tensors["a"])
    file.close()


def no_file(path: Path) -> None:
    """Nothing stands there."""


@pytest.mark.parametrize(
    ("make", "message"), [(no_file, "No such file"), (Path.mkdir, "no regular file")], ids=["missing", "folder"]
)
def test_no_file(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=message):
        GgufFile(tmp_path / "m.gguf", "tiny")


def test_arrays_of_the_wrong_kind(tmp_path: Path) -> None:
    pairs = [pair("list", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 1) + b"\xff"), LLAMA]
    file = read(tmp_path, file_of([*pairs, pair("ids", 9, struct.pack("<IQI", 4, 1, 7))], []))
    for ask, message in (
        (lambda: file.strings("list"), r"list\[0\] is no UTF-8"),
        (lambda: file.strings("ids"), "ids is no array of strings"),
        (lambda: file.numbers("list"), "list is no array of numbers"),
        (lambda: file.numbers("general.architecture"), "general.architecture is 'llama', expected an array"),
    ):
        with pytest.raises(ModelError, match=message):
            ask()
    file.close()


@pytest.mark.parametrize("value", [1e-5, 1e-6, 1e6, 0.1, 0.0, -1.5, 3.4028234663852886e38, 1 / 3, 500000.0])
def test_the_shortest_number_is_the_same_float32(value: float) -> None:
    stored = float(np.float32(value))
    assert np.float32(shortest(stored)) == np.float32(value)
    assert len(repr(shortest(stored))) <= len(repr(stored))
    assert shortest(float(np.float32(1e-5))) == 1e-5
