"""What the Triton kernels compute, without a GPU: TRITON_INTERPRET is read at import, so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire.kernels import KernelsRefused, select

pytest.importorskip("triton")


def test_interpreted_kernels_are_the_reference() -> None:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    cases = Path(__file__).with_name("interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, str(cases)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    print(done.stdout[-200:])


def test_without_a_gpu_they_are_refused() -> None:
    with pytest.raises(KernelsRefused, match="run on a GPU; TRITON_INTERPRET=1"):
        select("triton", "cpu")


def test_without_cuda_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("triton", "auto"):
        with pytest.raises(KernelsRefused, match=r"without CUDA|no CUDA device"):
            select(name, "cuda")


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quire.kernels.triton.interpreter", None)
    monkeypatch.delattr("quire.kernels.triton.interpreter", raising=False)
    with pytest.raises(KernelsRefused, match=r"quire\[gpu\]"):
        select("triton", "cpu")


def test_weights_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(KernelsRefused, match="compiled kernels"):
        select("triton", "cuda", "int8")
