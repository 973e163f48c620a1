"""`quire bench kernels` and the limits it compares with: it runs on every operation, and counts what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quire.benchmarks import kernel_cases, kernels
from quire.benchmarks.cli import main as bench
from quire.benchmarks.limits import Limits, Timing, Yardsticks, in_turns
from quire.clients.terminal import CommandFailed
from quire.kernels.cpu.library import LibraryMissing, load

LIMITS = Limits(threads=2, read_gb_per_s=20.0, copy_gb_per_s=10.0, float32_gflop_per_s=100.0, bfloat16_gflop_per_s=50.0)


def test_calls_take_turns() -> None:
    heard: list[str] = []
    timings = in_turns({name: lambda name=name: heard.append(name) for name in ("a", "b")}, rounds=3)
    turns = [name for name, before in zip(heard, [None, *heard], strict=False) if name != before]
    assert turns == ["a", "b"] * 4
    assert all(0 < timing.best <= timing.median for timing in timings.values())


def test_limits_follow_from_the_yardsticks() -> None:
    yardsticks = Yardsticks(tiny=True)
    timings = {name: Timing(2e-3, 3e-3) for name in yardsticks.calls} | {"limit read, largest": Timing(1e-3, 3e-3)}
    limits = yardsticks.limits(timings)
    assert limits.read_gb_per_s == pytest.approx((1 << 20) / 1e-3 / 1e9)
    assert limits.copy_gb_per_s == pytest.approx(2 * (1 << 20) / 2e-3 / 1e9)
    assert limits.gflop_per_s == pytest.approx(2 * 64**3 / 2e-3 / 1e9)
    for call in yardsticks.calls.values():
        call()


@pytest.mark.parametrize(
    ("nbytes", "flops", "copies", "bound"),
    [(2e8, 0.0, False, 0.1), (2e8, 0.0, True, 0.2), (2e8, 5e9, False, 0.5)],
    ids=["read", "copy", "compute"],
)
def test_the_bound_is_the_slower_of_moving_and_computing(
    nbytes: float, flops: float, copies: bool, bound: float
) -> None:
    case = kernel_cases.Case("op", "variant", "backend", lambda: None, nbytes, flops, copies)
    row = kernels._row(case, Timing(0.1, 0.2), LIMITS)
    assert row.bound == pytest.approx(bound)
    assert (row.gb_per_s, row.gflop_per_s) == (pytest.approx(nbytes / 1e8), pytest.approx(flops / 1e8))


def test_a_plan_of_sequences_in_shuffled_blocks() -> None:
    plan, blocks = kernel_cases.make_plan([40, 33], 2, 16)
    assert (blocks, plan.query_start_list, plan.seq_lens_list) == (1 + 3 + 3, (0, 2, 4), (40, 33))
    assert sorted(plan.block_tables.flatten().tolist()) == [1, 2, 3, 4, 5, 6]
    for row, (length, slots) in enumerate(zip((40, 33), plan.slot_mapping.view(2, 2).tolist(), strict=True)):
        for position, slot in zip((length - 2, length - 1), slots, strict=True):
            assert slot == plan.block_tables[row, position // 16] * 16 + position % 16


def test_every_operation_runs_on_every_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        load()
    except LibraryMissing:
        with pytest.raises(CommandFailed, match="the compiled kernels"):
            bench("bench", ["kernels", "--tiny"])
        return
    threads = torch.get_num_threads()
    page, file = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("<!-- study kernels -->\n<!-- end -->\n")
    words = ["--tiny", "--rounds", "1", "--threads", "1", "--output-json", str(file), "--update-page", str(page)]
    try:
        assert bench("bench", ["kernels", *words]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(file.read_text())["result"]["rows"]
    found = {(row["op"], row["variant"].rpartition(", ")[2] if "attention" in row["op"] else "") for row in rows}
    assert {op for op, _ in found} == {
        "linear", "decode attention", "prefill attention", "rms_norm", "rope", "silu(gate) * up", "sampling"
    }  # fmt: skip
    assert {row["variant"].partition(",")[0] for row in rows if row["op"] == "linear"} == set(kernels.PRECISIONS)
    assert {row["backend"].partition(" ")[0] for row in rows} == {"compiled", "torch", "pytorch"}
    assert "| linear | int4, M = 1 |" in page.read_text()
    assert "GFLOP/s in float32" in capsys.readouterr().out


def test_an_instruction_set_that_is_not_there() -> None:
    with pytest.raises(CommandFailed, match="the compiled kernels"):
        bench("bench", ["kernels", "--isa", "sse9"])
