"""What the machine has: cores and memory, as this process may use them. Torch-free; Linux."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from quire.engine.gpu import Gpu, NoGpu, find_gpu

_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Hardware:
    """Facts that `resolve` decides by. Memory is no part of it: it is read when the weights are in."""

    cores: int
    """Physical cores that this process may run on."""
    gpu: Gpu | None = None
    why_no_gpu: str = "nobody looked for one"


def find_hardware(cores: int, device: str) -> Hardware:
    """What the machine has; a GPU is looked for where `device` is cuda."""
    if device != "cuda":
        return Hardware(cores)
    try:
        return Hardware(cores, find_gpu())
    except NoGpu as reason:
        return Hardware(cores, why_no_gpu=str(reason))


def count_cores(root: Path = Path("/")) -> int:
    """Physical cores within this process's affinity and cgroup quota; at least one."""
    allowed = os.sched_getaffinity(0)
    cores: set[tuple[str, str]] = set()
    for block in (root / "proc/cpuinfo").read_text().split("\n\n"):
        fields = dict(_split(line) for line in block.splitlines() if ":" in line)
        if "processor" in fields and int(fields["processor"]) in allowed:
            number = fields["processor"]
            cores.add((fields.get("physical id", ""), fields.get("core id", f"processor {number}")))
    return max(1, min(len(cores) or len(allowed), _quota(root)))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can still be taken: the smaller of what the machine has and what each enclosing cgroup leaves."""
    fields = dict(_split(line) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *(_headroom(folder) for folder in _cgroups(root))])


def bfloat16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The CPU flag that multiplies bfloat16 in hardware, as Linux names it; None where there is none."""
    wanted = ("bf16",) if platform.machine() in ("aarch64", "arm64") else ("amx_bf16", "avx512_bf16")
    try:
        flags = set(re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return None
    return next((flag for flag in wanted if flag in flags), None)


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _cgroups(root: Path) -> list[Path]:
    """The folders of this process's cgroup and of those around it, for version 2 and for version 1's memory."""
    base = root / "sys/fs/cgroup"
    folders: list[Path] = []
    listing = root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = base / "memory" if controllers else base
        inner = top / path.lstrip("/")
        # Inside a container the path may be the host's; then only the top is there.
        folders += [folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents]
    return folders


def _headroom(folder: Path) -> int:
    """What a cgroup leaves: its limit less what it uses, where file pages that can be dropped do not count as used."""
    limit = _number(folder / "memory.max", _number(folder / "memory.limit_in_bytes", _UNLIMITED))
    if limit >= _UNLIMITED:
        return _UNLIMITED
    used = _number(folder / "memory.current", _number(folder / "memory.usage_in_bytes", 0))
    statistics = folder / "memory.stat"
    fields = dict(line.split() for line in statistics.read_text().splitlines()) if statistics.exists() else {}
    droppable = int(fields.get("total_inactive_file", fields.get("inactive_file", "0")))
    return max(0, limit - max(0, used - droppable))


def _quota(root: Path) -> int:
    """Whole cores of the tightest CPU quota (cgroup version 2), at least one."""
    quota = _UNLIMITED
    for folder in _cgroups(root):
        file = folder / "cpu.max"
        words = file.read_text().split() if file.exists() else []
        if len(words) == 2 and words[0] != "max":
            quota = min(quota, max(1, int(words[0]) // int(words[1])))
    return quota


def _number(file: Path, default: int) -> int:
    """The integer in a file; `default` without the file, unlimited where it says "max"."""
    if not file.exists():
        return default
    text = file.read_text().strip()
    return _UNLIMITED if text == "max" else int(text)
