"""`quire info`: facts for people and for programs."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quire import kernels
from quire.clients import cli, info
from quire.engine import gpu


def test_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["Versions"]["quire"] == importlib.metadata.version("quire")
    assert facts["Versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["Machine"]["cores"] >= 1
    assert facts["Kernels"]["kernels"].startswith(("cpu (", "pytorch, "))
    assert facts["Kernels"]["dtype of the starter"].startswith(("bfloat16", "float32"))
    assert int(facts["Starter model"]["parameters"].replace(",", "")) > 1_000_000


def kernels_of(monkeypatch: pytest.MonkeyPatch, choose: Callable[..., Any]) -> dict[str, Any]:
    monkeypatch.setattr(gpu, "find_gpu", lambda: gpu.Gpu("NVIDIA H200", 140 << 30, 139 << 30))
    right = kernels.select
    monkeypatch.setattr(kernels, "select", lambda name, device: choose() if device == "cuda" else right(name, device))
    return info.collect()["Kernels"]


def test_a_gpu_and_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = kernels_of(monkeypatch, lambda: SimpleNamespace(name="triton"))
    assert facts["gpu"] == "NVIDIA H200, 139.0 of 140.0 GiB free"
    assert facts["kernels on cuda"] == "triton"
    assert facts["dtype of the starter on cuda"].startswith("bfloat16")
    assert facts["kernels"].startswith(("cpu (", "pytorch, "))


def test_a_gpu_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise kernels.KernelsRefused("Triton is not installed")

    assert kernels_of(monkeypatch, refuse)["kernels on cuda"] == "none: Triton is not installed"


def test_the_page_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "Versions",
        "Machine",
        "Kernels",
        "Starter model",
    ]
    assert "\033" not in out
