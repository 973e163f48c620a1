"""`quire info`: what is installed, what the machine has, what Quire would choose on it, and why."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import struct
from pathlib import Path
from typing import Any

from quire.clients.terminal import Parser, bold

_PACKAGES = ("torch", "safetensors", "tokenizers", "fastapi", "uvicorn", "pydantic", "msgspec", "httpx", "triton")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")


def main(command: str, arguments: list[str]) -> int:
    """Print the facts; --json for programs."""
    parser = Parser(command, __doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse(arguments)
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    for title, entries in facts.items():
        print(bold(title))
        width = max(len(name) for name in entries)
        for name, value in entries.items():
            print(f"  {name:<{width}}  {' '.join(value) if isinstance(value, list) else value}")
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """All facts by group."""
    return {"Versions": _versions(), "Machine": _machine(), "Kernels": _kernels(), "Starter model": _starter()}


def _versions() -> dict[str, Any]:
    from quire import __version__

    versions: dict[str, Any] = {"quire": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _machine() -> dict[str, Any]:
    from quire.engine.hardware import available_memory, count_cores

    fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    first = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    flags = first.get("flags", first.get("Features", "")).split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": first.get("model name", "unknown"),
        "cores": count_cores(),
        "memory": f"{available_memory() / 2**30:.1f} GiB free for this process",
        "instructions": [flag for flag in _CPU_FLAGS if flag in flags],
    }


def _kernels() -> dict[str, Any]:
    from quire.engine.gpu import NoGpu, find_gpu

    facts = {"device": "cpu", **_chosen("cpu")}
    try:
        gpu = find_gpu()
    except NoGpu as reason:
        return {**facts, "gpu": f"none: {reason}"}
    facts["device"] = "cpu; `quire serve --device cuda` serves from the GPU"
    facts["gpu"] = f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free"
    return {**facts, **{f"{name} on cuda": text for name, text in _chosen("cuda").items()}}


def _chosen(device: str) -> dict[str, str]:
    """The kernels that `--kernels auto` takes on a device and the dtype of the starter there, or why none serve."""
    from quire.engine.config import EngineConfig
    from quire.engine.hardware import count_cores
    from quire.engine.model_folder import STARTER
    from quire.engine.models.architectures import read_model_config
    from quire.engine.precision import choose_precision
    from quire.kernels import KernelsRefused, select

    config = EngineConfig(model=str(STARTER), model_name="starter")
    precision = choose_precision(read_model_config(STARTER, "starter"), config, "cpu" if device == "cpu" else "gpu")
    try:
        name = select("auto", device).name
    except KernelsRefused as reason:
        return {"kernels": f"none: {reason}"}
    threads = f", {count_cores()} threads" if device == "cpu" else ""
    return {"kernels": name + threads, "dtype of the starter": precision.reason}


def _starter() -> dict[str, Any]:
    from quire.engine.model_folder import STARTER

    weights = Path(STARTER) / "model.safetensors"
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    config = json.loads((Path(STARTER) / "config.json").read_text())
    return {
        "folder": str(STARTER),
        "architecture": ", ".join(config["architectures"]),
        "parameters": f"{sum(math.prod(shape) for shape in shapes):,}",
        "size": f"{os.path.getsize(weights) / 2**20:.1f} MiB",
        "context": config["max_position_embeddings"],
    }
