"""The step benchmark measures steps in which every sequence decodes, and says so in figures."""

from __future__ import annotations

import json

import pytest

from quire.benchmarks import engine_step


@pytest.mark.parametrize("depth", [1, 2])
def test_prints_one_object_of_figures(depth: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_step.main(["--sequences", "4", "--steps", "20", "--depth", str(depth), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["sequences"], figures["steps"], figures["depth"]) == (4, 20, depth)
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
