"""The studies: what is computed is right, what is measured is measured on what it says, and the page is renewed."""

from __future__ import annotations

import gc
import json
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from quire.benchmarks import memory, offline
from quire.benchmarks.cli import main as bench
from quire.benchmarks.studies import batching, kv_cache, kv_memory, logit_error, prefix_cache, quantization
from quire.benchmarks.studies.engine import Engine
from quire.benchmarks.studies.record import PageError, machine, record, update_page
from quire.benchmarks.studies.run import STUDIES
from quire.benchmarks.studies.settings import Settings
from quire.clients.terminal import CommandFailed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_slots_in_blocks_against_a_count_step_by_step(block_size: int) -> None:
    prompts, outputs = np.array([1, 5, 16, 47]), np.array([1, 40, 16, 3])
    counted = sum(
        -(-(prompt + step) // block_size) * block_size
        for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True)
        for step in range(1, output + 1)
    )
    assert kv_memory.allocated_by_blocks(prompts, outputs, block_size) == counted


def test_blocks_waste_half_a_block_and_reservations_most_of_it() -> None:
    result = kv_memory.measure(Settings())
    waste = {scheme.name: scheme.waste for scheme in result.schemes}
    assert list(waste.values()) == sorted(waste.values(), reverse=True)
    assert waste["blocks of 16"] < 0.02 < 0.3 < waste["final length, if known"]
    assert result.mean_prompt == pytest.approx(kv_memory.PROMPT_MEAN, rel=0.1)
    assert result.mean_output == pytest.approx(kv_memory.OUTPUT_MEAN, rel=0.1)
    prompts, outputs = kv_memory.lengths(0, 2000)
    assert (prompts + outputs).max() == kv_memory.MAX_LEN
    assert dict(result.by_block_size)[1] == 0


def test_a_study_writes_its_figures_its_picture_and_its_place_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study kv-memory -->\nyesterday\n<!-- end -->\nafter\n")
    where = ["--result-dir", str(tmp_path), "--image-dir", str(tmp_path / "images"), "--page", str(page)]
    assert bench("bench", ["study", "kv-memory", "--tiny", "--update-page", *where]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- study kv-memory -->\n| memory")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "yesterday" not in text
    assert "](images/kv-memory.png)" in text
    assert (tmp_path / "images" / "kv-memory.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((tmp_path / "kv_memory.json").read_text())
    assert saved["result"]["count"] == 200
    assert saved["machine"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert bench("bench", ["study", "kv-memory", "--redraw", *where]) == 0
    assert capsys.readouterr().out in shown
    with pytest.raises(CommandFailed, match="--redraw"):
        bench("bench", ["study", "batching", "--redraw", *where])


def test_the_page_has_a_place_for_every_study(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    for name in STUDIES:
        update_page(page, name, f"here is {name}")
        assert f"here is {name}\n<!-- end -->" in page.read_text()
    with pytest.raises(PageError, match="unknown"):
        update_page(page, "unknown", "")


def test_a_record_names_the_machine() -> None:
    found = record("quire bench study x", {"a": 1})
    assert found.machine == machine()
    assert "bf16" in found.machine["processor"]


def test_tables_hold_the_ratios() -> None:
    points = [kv_cache.Point(64, 4.0, 20.0)]
    assert "| 64 | 4.00 | 20.0 | 5.0 |" in kv_cache.table(kv_cache.Result("starter", 1, points))
    empty = batching.Timeline([], [])
    compared = [batching.Comparison(8, 100.0, 175.0)]
    assert "| 8 | 100 | 175 | 1.75 |" in batching.table(batching.Result("starter", 1, 1.0, 1, compared, empty, empty))


def test_a_hit_reads_the_whole_prefix_from_the_cache() -> None:
    result = prefix_cache.measure(Settings(tiny=True))
    assert [(point.prefix, point.hit_tokens) for point in result.points] == [(128, 128), (256, 256)]
    assert all(point.without_ms > 0 and point.miss_ms > 0 and point.hit_ms > 0 for point in result.points)


def test_smaller_weights_are_compared_on_the_same_tokens() -> None:
    result = quantization.measure(Settings(tiny=True))
    first, *others = result.variants
    assert (first.weights, first.mean_difference, first.same_first) == ("float32", 0.0, 1.0)
    assert 1 < first.perplexity < 3, "the starter knows these answers"
    assert result.tokens > 4 * result.answers
    assert all(0 < one.mean_difference < 0.3 and one.weights_bytes < first.weights_bytes for one in others)
    assert quantization.table(result).count("\n") == 1 + len(result.variants)


def test_both_ways_of_batching_answer_the_same_requests() -> None:
    engine = Engine(None, enable_prefix_caching=False, max_num_seqs=4, max_model_len=64, threads=1)
    ordered = [([400 + output] * 5, output) for output in (2, 12, 3, 4, 9, 2)]
    tokens = sum(output for _, output in ordered)
    one_shot = batching.serve(engine, [ordered[:4], ordered[4:]])
    continuous = batching.serve(engine, [ordered])
    assert sum(one_shot.served) == sum(continuous.served) == tokens
    assert max(one_shot.served) == max(continuous.served) == 4
    assert len(continuous.served) < len(one_shot.served)


def test_offline_prints_the_line_of_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "offline.json"
    words = ["--num-prompts", "3", "--input-len", "10", "--output-len", "4", "--load-format", "dummy"]
    assert (
        offline.main([*words, "--disable-tqdm", "--output-json", str(file), "--max-model-len", "64", "--threads", "1"])
        == 0
    )
    out = capsys.readouterr().out
    assert "Throughput: " in out
    assert "Total num prompt tokens:  30\nTotal num output tokens:  12\n" in out
    found = json.loads(file.read_text())
    assert (found["num_requests"], found["total_num_tokens"]) == (3, 42)
    assert found["requests_per_second"] == pytest.approx(3 / found["elapsed_time"])


def test_smaller_numbers_move_the_logits_of_random_models() -> None:
    result = logit_error.measure(Settings(tiny=True))
    assert result.variants[0].error == 0.0
    assert result.variants[0].same_first == 1.0
    assert all(0 < one.error <= one.worst for one in result.variants[1:])
    assert f"| {result.variants[1].weights} |" in logit_error.table(result)


def test_what_memory_is_the_processes_own() -> None:
    gc.collect()  # what is freed meanwhile would count against the 64 MiB
    before = memory.own_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:] = b"x" * len(held)
        assert memory.own_bytes(os.getpid()) - before >= len(held) // 2
    assert memory.own_bytes(2**31 - 1) == 0
    assert memory.Result("m", 100, 200, 320, 350, 400).beside == 50
