"""Results as files: JSON with the machine that gave it, and the page that quotes it."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from quire.engine.hardware import bfloat16_instructions, count_cores


class PageError(ValueError):
    """The page has no place for a study."""


class Record(msgspec.Struct, frozen=True):
    """One run of one study."""

    command: str
    date: str
    commit: str | None
    machine: dict[str, Any]
    result: Any

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def record(command: str, result: Any) -> Record:
    """The result, with when, where and of which commit."""
    return Record(command, date.today().isoformat(), _commit(), machine(), result)


def machine() -> dict[str, Any]:
    """What a reader must know to judge a figure."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    bfloat16 = bfloat16_instructions()
    return {
        "processor": f"{names[0] if names else platform.machine()}, {bfloat16 or 'no bf16 instructions'}",
        "cores": count_cores(),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def update_page(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- study NAME -->` and `<!-- end -->`. Raises PageError without that place."""
    before = page.read_text()
    pattern = rf"(<!-- study {re.escape(name)} -->\n).*?(<!-- end -->)"
    after, count = re.subn(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise PageError(f"{page}: expected one <!-- study {name} --> ... <!-- end -->, found {count}")
    page.write_text(after)


def _commit() -> str | None:
    """Of the folder this file lies in; None outside a repository."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return run.stdout.strip() or None
