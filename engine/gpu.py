"""Whether there is a GPU to serve from, and its memory: asked of the driver's own command line. Torch-free."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

DEFAULT_SHARE = 0.9
"""Of a GPU's memory; the rest is for its context, and for what the profiling pass does not see."""
_SECONDS = 20.0


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    total_bytes: int
    free_bytes: int
    """What no process has taken."""

    def limit(self, share: float | None) -> int:
        """Bytes that this process may take altogether: the operator's share, or less where others have taken it."""
        return min(int((DEFAULT_SHARE if share is None else share) * self.total_bytes), self.free_bytes)


class NoGpu(Exception):
    """There is none; the text says why."""


def _ask(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout


def _torch_version() -> str:
    return importlib.metadata.version("torch")


def find_gpu(
    ask: Callable[[Sequence[str]], str] = _ask,
    environment: Mapping[str, str] = os.environ,
    torch_version: Callable[[], str] = _torch_version,
) -> Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves. Raises NoGpu."""
    version = torch_version()
    if version.endswith("+cpu"):
        raise NoGpu(f"PyTorch {version} was built without CUDA")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    chosen = "0" if visible is None else visible.split(",")[0].strip()
    if chosen in ("", "-1"):
        raise NoGpu(f"CUDA_VISIBLE_DEVICES={visible} hides every GPU")
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = ask(["nvidia-smi", "-i", chosen, *query])
        name, total, free = answer.strip().splitlines()[0].rsplit(",", 2)
        return Gpu(name.strip(), int(total) << 20, int(free) << 20)
    except FileNotFoundError:
        raise NoGpu("nvidia-smi is not there, so no NVIDIA driver is installed") from None
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stdout", None) or str(error)).strip().splitlines()
        raise NoGpu(f"nvidia-smi failed: {said[0] if said else 'it said nothing'}") from None
    except (ValueError, IndexError):
        raise NoGpu(f"nvidia-smi said {answer.strip()[:80]!r}") from None
