"""`quire info`: facts for people and for programs."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from quire.clients import cli


def test_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["Versions"]["quire"] == importlib.metadata.version("quire")
    assert facts["Versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["Machine"]["cores"] >= 1
    assert facts["Kernels"]["kernels"].startswith(("cpu (", "pytorch, "))
    assert facts["Kernels"]["dtype of the starter"].startswith(("bfloat16", "float32"))
    assert int(facts["Starter model"]["parameters"].replace(",", "")) > 1_000_000


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
