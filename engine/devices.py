"""What a machine or a GPU can do: memory, bandwidth, matmul rate, and the share that predictions assume. Torch-free.

The figures of GPUs are their makers' (dense, without sparsity; float32 without TF32), their memory is what the driver
reports. This machine's bandwidth is measured in a tenth of a second, its matmul rate follows from /proc/cpuinfo.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quire.engine.gpu import DEFAULT_SHARE
from quire.engine.precision import DtypeName

_SAMPLE_BYTES = 64 << 20
_SLICE_BYTES = 4 << 20


@dataclass(frozen=True)
class Efficiency:
    """The share of the peak that is assumed to be reached, and what a step costs beside its bytes and products."""

    weights: float
    """Of the bandwidth, reading weights."""
    kv: float
    """Of the bandwidth, reading keys and values."""
    matmul: float
    attention: float
    """Of the matmul rate, in the attention of a prompt."""
    layer_seconds: float
    step_seconds: float
    overlaps: bool
    """Whether weights are read while others multiply, so that the slower of the two counts and not their sum."""
    source: str


CPU_EFFICIENCY = Efficiency(
    weights=0.85,
    kv=0.46,
    matmul=0.5,
    attention=0.3,
    layer_seconds=20e-6,
    step_seconds=0.3e-3,
    overlaps=False,
    source="the compiled kernels on a 2-core AVX-512 machine",
)
GPU_EFFICIENCY = Efficiency(
    weights=0.7,
    kv=0.7,
    matmul=0.6,
    attention=0.4,
    layer_seconds=13e-6,
    step_seconds=0.3e-3,
    overlaps=True,
    source="what good servers reach; Quire's own figures on a GPU are not measured yet",
)


@dataclass(frozen=True)
class Device:
    """One machine or GPU."""

    name: str
    title: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    """On a CPU what this process may take now."""
    bandwidth: float
    """Bytes a second."""
    flops: dict[DtypeName, float]
    """Operations of a matmul a second; a multiplication and an addition are two."""
    source: str
    efficiency: Efficiency
    share: float = DEFAULT_SHARE
    """Of a GPU's memory that may be taken: `--gpu-memory-utilization`."""


def _gpu(name: str, title: str, mebibytes: int, gb_per_second: int, half: float, single: float, source: str) -> Device:
    rates: dict[DtypeName, float] = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Device(name, title, "gpu", mebibytes << 20, gb_per_second * 1e9, rates, source, GPU_EFFICIENCY)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", "NVIDIA B200", 183_359, 8000, 2250, 75, "NVIDIA DGX B200 datasheet"),
        _gpu("h200", "NVIDIA H200 SXM", 143_771, 4800, 989, 67, "NVIDIA H200 datasheet"),
        _gpu("h100", "NVIDIA H100 SXM 80 GB", 81_559, 3350, 989, 67, "NVIDIA H100 datasheet"),
        _gpu("h100-pcie", "NVIDIA H100 PCIe 80 GB", 81_559, 2000, 756, 51, "NVIDIA H100 datasheet"),
        _gpu("a100", "NVIDIA A100 SXM 80 GB", 81_920, 2039, 312, 19.5, "NVIDIA A100 datasheet"),
        _gpu("a100-40gb", "NVIDIA A100 SXM 40 GB", 40_960, 1555, 312, 19.5, "NVIDIA A100 datasheet"),
        _gpu("l40s", "NVIDIA L40S", 46_068, 864, 362, 91.6, "NVIDIA L40S datasheet"),
        _gpu("l4", "NVIDIA L4", 23_034, 300, 121, 30.3, "NVIDIA L4 datasheet"),
        _gpu("a10", "NVIDIA A10", 23_028, 600, 125, 31.2, "NVIDIA A10 datasheet"),
        _gpu("rtx5090", "NVIDIA GeForce RTX 5090", 32_607, 1792, 209.5, 104.8, "NVIDIA RTX Blackwell whitepaper"),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24_564, 1008, 165.2, 82.6, "NVIDIA Ada whitepaper"),
        _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24_576, 936, 71, 35.6, "NVIDIA GA102 whitepaper"),
    )
}
"""By the names that `quire plan --device` takes."""


def this_machine(memory_bytes: int, cores: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> Device:
    """The CPU that this process runs on, with `memory_bytes` to take; measures the bandwidth of `cores` threads."""
    title, rates = _cpu_rates(cpuinfo.read_text(), cores)
    source = "bandwidth measured now, other work on the machine lowers it; FLOP/s from /proc/cpuinfo"
    return Device(
        "cpu",
        f"this machine ({title}, {cores} core{'s' * (cores > 1)})",
        "cpu",
        memory_bytes,
        _read_bandwidth(cores),
        rates,
        source,
        CPU_EFFICIENCY,
    )


def _cpu_rates(cpuinfo: str, cores: int) -> tuple[str, dict[DtypeName, float]]:
    """Name, and peak matmul rates: cores x clock x what the widest vector unit does in a cycle."""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    title, flags = fields.get("model name", "CPU"), set(fields.get("flags", fields.get("Features", "")).split())
    named = re.search(r"@ *([\d.]+) *GHz", title)
    hertz = float(named[1]) * 1e9 if named else float(fields.get("cpu MHz", "2500")) * 1e6
    widths = {"avx512f": 64, "avx2": 32, "sve": 32, "asimd": 16, "avx": 16}
    single = cores * hertz * next((width for flag, width in widths.items() if flag in flags), 8)
    factors = {"amx_bf16": 16.0, "avx512_bf16": 2.0, "bf16": 2.0}
    half = single * next((factor for flag, factor in factors.items() if flag in flags), 0.5)
    return re.sub(r"\(R\)|\(TM\)| *@.*", "", title), {"float32": single, "bfloat16": half, "float16": half}


def _read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` read together: each reads slices of its own, and its best slice counts.

    The best, because whatever else runs on the machine takes time from some slices and not from all.
    """
    import numpy as np

    slices = np.ones(_SAMPLE_BYTES // 4, dtype=np.float32).reshape(-1, _SLICE_BYTES // 4)

    def best_rate(first: int) -> float:
        best = 0.0
        for part in slices[first::threads]:
            start = time.perf_counter()
            part.max()
            best = max(best, part.nbytes / (time.perf_counter() - start))
        return best

    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(best_rate, range(threads))) for _ in range(2))
