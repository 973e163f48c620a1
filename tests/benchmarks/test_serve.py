"""`quire bench serve` against a small server over a real socket: figures, files, verification, what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.bench_target import BenchTarget

from quire.benchmarks import serve
from quire.benchmarks.cli import main as bench
from quire.benchmarks.metrics import Answer
from quire.benchmarks.verify import compare
from quire.clients.terminal import CommandFailed

SMALL = ["--random-input-len", "12", "--random-output-len", "6", "--num-prompts", "8"]


async def run(target: BenchTarget, *words: str) -> int:
    """The command in a thread of its own; the server answers in this one."""
    return await asyncio.to_thread(serve.main, ["--base-url", target.url, *SMALL, *words])


async def saved(target: BenchTarget, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = await run(target, *words, "--save-result", "--result-dir", str(folder), "--result-filename", "r.json")
    return code, json.loads((folder / "r.json").read_text())


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "ollama"])
async def test_counts_what_came(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with BenchTarget().served() as target:
        code, found = await saved(target, tmp_path, "--backend", backend, "--save-detailed", "--num-warmups", "2")
    assert code == 0
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (8, 0, 48)
    assert found["model_id"] == ("stub:latest" if backend == "ollama" else "stub")
    assert found["mean_ttft_ms"] > 0
    assert [len(gaps) for gaps in found["itls"]] == [5] * 8
    assert all(len(text.split()) == 6 for text in found["generated_texts"])
    assert len(target.bodies) == 10
    assert len({json.dumps(body.get("prompt", body.get("messages"))) for body in target.bodies}) == 10
    out = capsys.readouterr().out
    assert "Successful requests:                     8" in out


async def test_the_body_carries_what_was_asked_for() -> None:
    async with BenchTarget(tokenizes=True).served() as target:
        assert await run(target, "--ignore-eos", "--temperature", "0.5", "--extra-body", '{"top_k": 4}') == 0
    bodies = sorted(target.bodies, key=lambda body: body["seed"])
    assert [body["seed"] for body in bodies] == list(range(8))
    assert all(body["ignore_eos"] and body["top_k"] == 4 and body["max_tokens"] == 6 for body in bodies)
    assert all(len(body["prompt"]) == 12 and isinstance(body["prompt"][0], int) for body in bodies)


async def test_failures_are_counted_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with BenchTarget(broken=(2, 5)).served() as target:
        code, found = await saved(target, tmp_path)
    assert code == 0
    assert (found["completed"], found["failed"]) == (6, 2)
    assert found["failure_reasons"] == {"HTTP 503: busy": 2}
    assert "2 failed: HTTP 503: busy" in capsys.readouterr().out
    async with BenchTarget(broken=range(100)).served() as target:
        assert await run(target) == 1


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
@pytest.mark.parametrize("by", ["token ids", "tokens", "text"])
async def test_verify_finds_nothing_where_nothing_is(backend: str, by: str, tmp_path: Path) -> None:
    async with BenchTarget(ids=by == "token ids", logprobs=by != "text").served() as target:
        code, found = await saved(target, tmp_path, "--backend", backend, "--verify")
    verdict = found["verify"]
    assert (code, verdict["by"], verdict["compared"], verdict["mismatches"]) == (0, by, 8, [])
    salts = [body["cache_salt"] for body in target.bodies[-8:]]
    assert len(set(salts)) == 8
    assert not any("cache_salt" in body for body in target.bodies[-16:-8])


@pytest.mark.parametrize("by", ["token ids", "tokens", "text"])
async def test_verify_catches_an_answer_that_depends_on_company(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with BenchTarget(ids=by == "token ids", logprobs=by != "text", wrong_at=3).served() as target:
        code, found = await saved(target, tmp_path, "--verify")
    verdict = found["verify"]
    assert (code, verdict["by"], verdict["compared"]) == (1, by, 8)
    assert len(verdict["mismatches"]) >= 4
    first = verdict["mismatches"][0]
    if by != "text":
        assert first["position"] == 3
        assert (first["unit"], first["margin"], first["repeatable"]) == ("token", pytest.approx(1.5), True)
    assert first["under_load"] != first["alone"]
    out = capsys.readouterr().out
    assert f"by {by}: {len(verdict['mismatches'])} mismatches, 0 near ties" in out
    assert "under load, " in out


async def test_near_ties_stand_apart_and_fail_nothing(tmp_path: Path) -> None:
    async with BenchTarget(wrong_at=3, margin=0.01).served() as target:
        code, found = await saved(target, tmp_path, "--verify", "--tie", "0.05")
    assert code == 0
    assert found["verify"]["mismatches"] == []
    assert len(found["verify"]["near_ties"]) >= 4


async def test_what_was_not_compared_is_no_success(tmp_path: Path) -> None:
    # Three requests ask what the server can do; the fifth is one of the load.
    async with BenchTarget(broken=(5,)).served() as target:
        code, found = await saved(target, tmp_path, "--verify")
    assert (code, found["verify"]["compared"]) == (1, 7)
    assert found["verify"]["not_compared"] == ["under load: HTTP 503: busy"]


def test_comparison_of_two_answers() -> None:
    def answer(*ids: int, finish: str = "length") -> Answer:
        return Answer(3, 0.0, token_ids=list(ids), finish_reason=finish)

    assert compare(answer(1, 2, 3), answer(1, 2, 3), "token ids") is None
    found = compare(answer(1, 2), answer(1, 2, 3), "token ids")
    assert found is not None
    assert (found.request, found.position, found.under_load, found.alone) == (3, 2, "the end (length)", "3")
    assert compare(answer(1), answer(1, finish="stop"), "token ids") is not None
    texts = compare(Answer(0, 0.0, text="a cat"), Answer(0, 0.0, text="a dog"), "text")
    assert texts is not None
    assert (texts.unit, texts.position, texts.under_load) == ("character", 2, "'cat'")


async def test_several_rates_and_their_plots(tmp_path: Path) -> None:
    async with BenchTarget().served() as target:
        code = await run(
            target, "--request-rate", "200", "inf", "--plot", "--save-result", "--result-dir", str(tmp_path),
            "--result-filename", "r.json",
        )  # fmt: skip
    assert code == 0
    names = {"r-200qps.json", "r-infqps.json", "latency.png", "distributions.png", "load.png"}
    assert set(os.listdir(tmp_path)) == names
    for name in ("latency", "distributions", "load"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


async def test_concurrency_is_bounded(tmp_path: Path) -> None:
    async with BenchTarget().served() as target:
        _, found = await saved(target, tmp_path, "--max-concurrency", "2")
    assert found["max_concurrent_requests"] == 2
    assert found["max_concurrency"] == 2


async def test_a_server_that_cannot_tokenize_is_asked_in_guessed_words(capsys: pytest.CaptureFixture[str]) -> None:
    async with BenchTarget().served() as target:
        assert await run(target) == 0
    assert all(len(body["prompt"].split()) == 12 for body in target.bodies)
    assert "lengths of prompts are guesses" in capsys.readouterr().err


USAGE = [
    (["serv"], "did you mean serve?"),
    (["serve", "--num-prompt", "3"], "did you mean --num-prompts?"),
    (["serve", "--goodput", "itl:3"], "--goodput itl:3"),
    (["serve", "--goodput", "ttft:x"], "no number"),
    (["serve", "--request-rate", "0"], "positive"),
    (["serve", "--metric-percentiles", "101"], "within 0 and 100"),
    (["serve", "--percentile-metrics", "latency"], "unknown metric"),
    (["serve", "--extra-body", "[]"], "JSON object"),
]


@pytest.mark.parametrize(("words", "part"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_usage(words: list[str], part: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(part)) as caught:
        bench("bench", words)
    assert caught.value.exit_code == 2


def test_nobody_answers() -> None:
    with pytest.raises(CommandFailed, match="is a server running there"):
        serve.main(["--base-url", "http://127.0.0.1:9"])


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="aiohttp")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(CommandFailed, match=r"pip install 'quire\[bench\]'"):
        bench("bench", ["serve"])
