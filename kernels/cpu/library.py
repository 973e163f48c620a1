"""The compiled kernels, as ctypes sees them: found beside this file, chosen by instruction set, the GIL free inside."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ABI = 3
"""What `quire_abi` must answer."""
PATH = Path(__file__).parent / "libquire_cpu.so"
NEEDS = {
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma", "f16c"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "neon": {"asimd"},
    "plain": set(),
}
"""Instruction set, best first -> the flags of /proc/cpuinfo that it needs."""


class LibraryMissing(Exception):
    """Why the compiled kernels cannot be used; one line."""


class Library:
    """The functions of one instruction set; each is looked up once, when the backend is made."""

    def __init__(self, library: ctypes.CDLL, isa: str) -> None:
        self._library, self.isa = library, isa

    def function(self, name: str, arguments: Sequence[Any], result: Any = None) -> Any:
        """The exported function `quire_<isa>_<name>` with these ctypes types."""
        found = getattr(self._library, f"quire_{self.isa}_{name}")
        found.argtypes, found.restype = list(arguments), result
        return found

    def set_threads(self, threads: int) -> None:
        """How many threads the kernels use from now on."""
        self._library.quire_set_threads(threads)

    def get_threads(self) -> int:
        """How many threads the kernels use."""
        return int(self._library.quire_get_threads())

    def has(self, name: str) -> bool:
        """Whether this instruction set has the function."""
        return hasattr(self._library, f"quire_{self.isa}_{name}")


@cache
def _open() -> ctypes.CDLL:
    if not PATH.exists():
        raise LibraryMissing("they were not built when Quire was installed (that takes a C compiler)")
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise LibraryMissing(f"{PATH.name} cannot be loaded ({error})") from error
    if library.quire_abi() != ABI:
        raise LibraryMissing(f"{PATH.name} belongs to another version of Quire; install Quire again")
    return library


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's flags as Linux names them; none where it does not say."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def usable() -> tuple[str, ...]:
    """Instruction sets that are in the library and that this CPU has, best first; raises LibraryMissing."""
    library = _open()
    return tuple(
        isa for isa, needs in NEEDS.items() if needs <= cpu_flags() and hasattr(library, f"quire_{isa}_rms_norm")
    )


def load(isa: str | None = None) -> Library:
    """The library at its best instruction set, or at `isa`. Raises LibraryMissing, with the reason."""
    choices = usable()
    if isa is None and choices:
        return Library(_open(), choices[0])
    if isa not in choices:
        raise LibraryMissing(
            f"no kernels for {isa or platform.machine()} here; there are: {', '.join(choices) or 'none'}"
        )
    return Library(_open(), isa)
