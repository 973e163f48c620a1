"""`quire simulate`: what it prints, what it refuses, and that a long run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.clients import cli
from quire.simulator.recorded import read_progress


def test_lives_are_summed_up_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "runs" / "progress.json"
    words = ["simulate", "--steps", "60", "--resume", str(kept)]
    assert cli.main([*words, "--total", "100"]) == 0
    first = read_progress(kept)
    assert first.num_steps >= 100
    assert cli.main([*words, "--total", "1k"]) == 0
    second = read_progress(kept)
    assert second.num_steps >= 1000
    assert second.num_lives > first.num_lives
    assert second.next_seed == second.num_lives
    out = capsys.readouterr().out
    assert f"{second.num_lives} lives, {second.num_steps:,} steps" in out
    assert "waiting>running" in out


def test_a_life_with_a_mutant_ends_in_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--seed", "0", "--until", "60", "--mutant", "skip-one-decref"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "violates I2" in out
    assert "again: quire simulate --seed 0 --until 60" in out
    assert "The same violation needs" in out


def test_a_sound_life_is_told_by_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--seed", "0", "--steps", "30"]) == 0
    assert "no violation, trace" in capsys.readouterr().out
    assert cli.main(["simulate", "--sweep", "--seeds", "1", "--steps", "5"]) == 0
    assert "1 traces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--mutant", "skip-one-decreff"], "did you mean skip-one-decref?"),
        (["--mutant", "?"], "there are"),
        (["--steps", "none"], "--steps"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_what_it_does_not_know_it_refuses(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", *words]) == 2
    assert part in capsys.readouterr().err
