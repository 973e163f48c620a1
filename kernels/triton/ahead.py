"""Compile ahead of time, without a GPU: what registers and shared memory each launch of the backend would take.

    python -m quire.kernels.triton.ahead [--target sm_80,sm_90]

compiles every launch that the settings table leads to, and prints what it found; results are kept by a hash of the
sources, so that what has not changed is not compiled again.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Of one program, at most, by compute capability."""


@dataclass(frozen=True)
class Launch:
    """A kernel as it was called: its arguments, and options such as num_warps among them."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What became of a launch for one target. `spilled`: bytes of registers that did not fit, a thread."""

    name: str
    capability: int
    registers: int
    shared: int
    spilled: int
    warps: int
    ptx: str

    @property
    def copies_ahead(self) -> int:
        """Asynchronous copies of 16 bytes from global to shared memory: the sign of a pipelined loop."""
        return len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", self.ptx))

    def __str__(self) -> str:
        return (
            f"{self.name} sm_{self.capability}: {self.registers} registers, {self.shared} bytes shared, "
            f"{self.spilled} spilled, {self.warps} warps, {self.copies_ahead} asynchronous copies"
        )


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Kernels are not run, they are written down: for tensors on the CPU, where they could not run."""
    launches: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(self, args, kwargs))

    run = JITFunction.run
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def prepare(launch: Launch, capability: int) -> tuple[ASTSource, dict[str, Any], GPUTarget]:
    """What a call on a device of that capability would compile: the same specialization of the same arguments."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **launch.kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.kwargs, bound, specialization, options
    )
    return ASTSource(kernel, signature, constants, attributes), options.__dict__, target


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile for `capability` (80, 90); raises what Triton raises where that is not possible."""
    source, options, target = prepare(launch, capability)
    binary = triton.compile(source, target=target, options=options)
    registers, stack = _resources(binary.asm["cubin"])
    return Compiled(
        launch.kernel.fn.__name__,
        capability,
        registers,
        binary.metadata.shared,
        stack,
        binary.metadata.num_warps,
        binary.asm["ptx"],
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as the toolkit's own reader says."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        reader = triton.knobs.nvidia.cuobjdump.path
        words = [reader, "--dump-resource-usage", file.name]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"no registers in what {reader} says: {text}")
    return int(found[1]), int(found[2])


def distinct(launches: Sequence[Launch], capability: int) -> list[Launch]:
    """One of each that would be compiled to the same code."""
    kept = {}
    for launch in launches:
        source, options, _ = prepare(launch, capability)
        kept[source.hash(), str(sorted(options.items(), key=str))] = launch
    return list(kept.values())
