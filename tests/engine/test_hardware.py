"""Cores and memory as affinity, quota and control groups leave them, read from made-up system folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.engine import hardware


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000),
        ({"proc/self/cgroup": "0::/\n"}, 8_192_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 8_192_000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "1000000\n",
                "sys/fs/cgroup/a/memory.current": "700000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 200000\n",
            },
            500_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/gone\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000\n",
            },
            600_000,
        ),
    ],
)
def test_available_memory(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert hardware.available_memory(write(tmp_path, MEMINFO | files)) == expected


def processor(number: int, core: int) -> str:
    return f"processor : {number}\nphysical id : 0\ncore id : {core}\n"


def test_cores_are_physical_allowed_and_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5})
    cpuinfo = "\n".join(processor(number, number % 4) for number in range(8))
    assert hardware.count_cores(write(tmp_path, {"proc/cpuinfo": cpuinfo})) == 4
    quota = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "250000 100000\n"}
    assert hardware.count_cores(write(tmp_path, quota)) == 2
    assert hardware.count_cores(write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "5000 100000\n"})) == 1
    arm = {"proc/cpuinfo": "\n\n".join(f"processor : {number}\n" for number in range(8)), **quota}
    assert hardware.count_cores(write(tmp_path, arm | {"sys/fs/cgroup/a/cpu.max": "max 100000\n"})) == 6


def test_cpu_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    for machine, text, expected in (
        ("x86_64", "flags\t: fpu avx512f avx512_bf16 amx_tile\n", "avx512_bf16"),
        ("x86_64", "flags\t: fpu avx512f avx512_vnni\n", None),
        ("aarch64", "Features\t: fp asimd bf16\n", "bf16"),
        ("x86_64", "nothing", None),
    ):
        monkeypatch.setattr(hardware.platform, "machine", lambda machine=machine: machine)
        info.write_text(text)
        assert hardware.bfloat16_instructions(info) == expected
    assert hardware.bfloat16_instructions(tmp_path / "none") is None
