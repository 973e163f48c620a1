"""Compile the native kernels: `python -m quire.kernels.cpu.build`; the package's own build calls `build` as well.

Each file of `native/` is compiled once for every instruction set that the compiler knows for this machine's
architecture, and all of it is linked into one shared library, from which `quire.kernels.cpu.library` chooses at run
time: what is built never depends on the CPU that built it. Nothing but the standard library is imported here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
LIBRARY_NAME = "libquire_cpu.so"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
        "avx512vnni": [*AVX512, "-mavx512vnni"],
        "avx512": AVX512,
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "plain": [],
    },
    "aarch64": {"neon": [], "plain": ["-U__ARM_NEON"]},
}
"""Architecture -> instruction set, best first -> compiler flags."""
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=implicit"]
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
"""No flag that lets the compiler change the order of sums: equal bits for equal histories are promised."""
COMMON = "library.c"
"""Compiled once; every other file once for each instruction set."""


class NotBuilt(Exception):
    """Why there is no library; one line."""


def compiler() -> list[str]:
    """The C compiler's command: $CC, or cc, gcc or clang; raises NotBuilt."""
    if wanted := os.environ.get("CC", "").split():
        if shutil.which(wanted[0]) is None:
            raise NotBuilt(f"{wanted[0]}: no such compiler")
        return wanted
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        raise NotBuilt("no C compiler (cc, gcc, clang) was found")
    return [found]


def build(target: Path, *, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Compile into the file `target`, replaced in one move; returns the instruction sets that are in it.

    An instruction set that this compiler does not know is left out. `extra` are further compiler flags (sanitizers).
    Raises NotBuilt with the compiler's first error otherwise.
    """
    command = compiler()
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    sets = {isa: flags for isa, flags in INSTRUCTION_SETS.get(machine, {"plain": []}).items() if _knows(command, flags)}
    sources = sorted(path for path in NATIVE.glob("*.c") if path.name != COMMON)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [[*FLAGS, str(NATIVE / COMMON), "-o", f"{folder}/common.o"]]
        for isa, flags in sets.items():
            for source in sources:
                jobs.append(
                    [*FLAGS, *ARITHMETIC, *flags, f"-DISA={isa}", str(source), "-o", f"{folder}/{source.stem}-{isa}.o"]
                )
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda job: _run([*command, "-c", *job, *extra]), jobs))
        linked = Path(folder) / LIBRARY_NAME
        objects = sorted(str(path) for path in Path(folder).glob("*.o"))
        _run([*command, *extra, "-shared", "-fopenmp", "-o", str(linked), *objects, "-lm"])
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copyfile(linked, partial)
        partial.replace(target)
    return tuple(sets)


def _knows(command: list[str], flags: list[str]) -> bool:
    probe = [*command, *flags, "-x", "c", "-c", "-", "-o", os.devnull]
    return subprocess.run(probe, input="int x;", text=True, capture_output=True).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise NotBuilt(f"{' '.join(command[:1])}: {first}")


if __name__ == "__main__":
    try:
        built = build(Path(__file__).parent / LIBRARY_NAME)
    except NotBuilt as problem:
        sys.exit(f"the compiled CPU kernels were not built: {problem}")
    print(f"{LIBRARY_NAME}: {', '.join(built)}")
