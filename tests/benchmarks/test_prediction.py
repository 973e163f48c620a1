"""Predictions stand beside measurements of the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import tiny_checkpoint

from quire.benchmarks import prediction


def test_prints_one_object_of_figures(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    words = ["--batches", "1", "3", "--contexts", "8", "40", "--steps", "2", "--threads", "1", "--json"]
    assert prediction.main([str(folder), *words]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(point["batch"], point["context"]) for point in points] == [
        (0, 8),
        (1, 8),
        (3, 8),
        (0, 40),
        (1, 40),
        (3, 40),
    ]
    assert all(point["predicted_ms"] > 0 and point["measured_ms"] > 0 for point in points)
    assert prediction.main([str(folder), *words[:-1]]) == 0
    assert "prompt of 40" in capsys.readouterr().out
