"""Compile ahead of time, without a GPU: what registers and shared memory each launch of the backend would take.

    python -m quire.kernels.triton.ahead [--targets 80,90] [--cache build/triton-ahead]

compiles every launch that the settings table leads to, prints what it found and exits with 1 where a bound is broken;
what has not changed since is taken from the cache, which goes by a hash of the sources.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from quire.kernels.triton import settings, shapes
from quire.kernels.triton.backend import TritonKernels
from quire.kernels.triton.paged import Attention

BLOCK_SIZES = (16, 64, 256)
"""For which attention is compiled: smaller than a tile of keys, as large, larger."""
PROCESSORS = 132
MAX_SPILLED = {80: 256, 90: 0}
"""Bytes a thread. On sm_80 the prompt kernels of large tiles spill some."""
FLOAT8_CAPABILITY = 89
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
"""Of one program, at most, by compute capability."""


@dataclass(frozen=True)
class Launch:
    """A kernel as it was called: its arguments, and options such as num_warps among them."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def shape(self) -> str:
        """What it is compiled for: its named constants that are not off."""
        return " ".join(f"{name}={value}" for name, value in self.kwargs.items() if value)


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


def attention_launches(shape: shapes.AttentionShape, *, invariant: bool = False) -> list[Launch]:
    """What attention of that shape launches."""
    attention = Attention(settings.load(), PROCESSORS, invariant)
    with recorded() as launches:
        shapes.make_attention(shape, torch.device("cpu")).apply(attention)
    return launches


def table_launches(capability: int) -> list[Launch]:
    """What every row of the table leads to, and every kernel that has no row."""
    table, kernels = settings.load(), TritonKernels(torch.device("cpu"))
    launches: list[Launch] = []
    for row in table.attention:
        new = 1 if row.phase == "decode" else 64
        for block_size in BLOCK_SIZES:
            for options in ({}, {"window": 128}, {"softcap": 30.0, "sinks": True}, {"float8": True}):
                if "float8" in options and capability < FLOAT8_CAPABILITY:
                    continue
                group = row.group if row.phase == "decode" else 4
                shape = shapes.AttentionShape(
                    row.head_dim,
                    group,
                    2,
                    block_size,
                    length=512,
                    new=new,
                    **options,
                )
                launches += attention_launches(shape)
        if row.phase == "decode":
            launches += attention_launches(
                shapes.AttentionShape(row.head_dim, row.group, 2, length=512), invariant=True
            )
    with recorded() as others:
        shapes.launch_layer(kernels)
        shapes.launch_sampling(kernels)
        shapes.launch_matmuls(table)
        if capability >= FLOAT8_CAPABILITY:
            shapes.launch_float8_write(kernels)
    return distinct([*launches, *others], capability)


def broken_bounds(compiled: Compiled) -> list[str]:
    """What is wrong with a kernel, in words; empty when nothing is."""
    wrong = []
    if compiled.shared > SHARED_BYTES[compiled.capability]:
        wrong.append(
            f"takes {compiled.shared} bytes of shared memory, and there are {SHARED_BYTES[compiled.capability]}"
        )
    if compiled.spilled > MAX_SPILLED[compiled.capability]:
        wrong.append(f"spills {compiled.spilled} bytes of registers a thread")
    if compiled.name in ("attention_kernel", "matmul_kernel") and not compiled.copies_ahead:
        wrong.append("does not copy ahead: its loop is not pipelined")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the whole table; 0 when every bound holds."""
    parser = argparse.ArgumentParser(
        prog="python -m quire.kernels.triton.ahead", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--targets", default="80,90", help="compute capabilities (default: 80,90)")
    parser.add_argument("--cache", type=Path, default=Path("build/triton-ahead"), help="where results are kept")
    options = parser.parse_args(argv)
    triton.knobs.cache.dir = str(options.cache.resolve())
    broken = 0
    print(f"triton {triton.__version__}, settings: {settings.load().source}")
    for capability in map(int, options.targets.split(",")):
        for launch in table_launches(capability):
            compiled = compile_launch(launch, capability)
            wrong = broken_bounds(compiled)
            broken += bool(wrong)
            print(f"{launch.shape} {compiled}" + "".join(f"; {text}" for text in wrong), flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    raise SystemExit(main())
