"""The goals' table: ratios, bounds and verdicts from given figures; the bench model and the rates in a tiny shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire.benchmarks import bench_model, compare, contenders, cpu_goals, engine_rates
from quire.benchmarks.engine_rates import Rates
from quire.benchmarks.goal_rows import Goal, Measured, goals, limit_rate, table
from quire.benchmarks.limits import Limits
from quire.benchmarks.studies.record import record
from quire.clients.terminal import CommandFailed

LIMITS = Limits(threads=2, read_gb_per_s=20.0, copy_gb_per_s=10.0, float32_gflop_per_s=100.0, bfloat16_gflop_per_s=50.0)
TINY: dict[str, Any] = dict(bench_model.SHAPE) | {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_model, "_CORPUS_BYTES", 40_000)
        return bench_model.write_model(folder, TINY)


def test_the_bench_shape_has_the_parameters_that_it_says() -> None:
    assert bench_model.weight_bytes() == pytest.approx(2 * 473.2e6, rel=1e-3)


def test_the_engine_serves_the_bench_model(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tiny / "model.safetensors").stat().st_mtime_ns
    assert bench_model.write_model(tiny, TINY) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before
    words = [str(tiny), "--input-len", "20", "--output-len", "6", "--batch", "3", "--threads", "1", "--rounds", "2"]
    assert engine_rates.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    found = contenders.read_rates("\n".join(lines))
    assert found.batch == 3
    assert min(found.prefill, found.decode, found.batch_decode) > 0


@pytest.mark.parametrize("kind", bench_model.GGUF_TYPES)
def test_the_gguf_file_holds_every_tensor(tiny: Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(bench_model.write_gguf(tiny, kind))
    found = {tensor.name: tensor for tensor in reader.tensors}
    shapes = bench_model.weight_shapes(TINY)
    assert set(found) == {bench_model._gguf_name(name) for name in shapes}
    for name, shape in shapes.items():
        tensor = found[bench_model._gguf_name(name)]
        assert tuple(reversed(tensor.shape.tolist())) == shape
        assert tensor.tensor_type.name == (kind if len(shape) == 2 else "F32")
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == TINY["vocab_size"]


def test_lines_of_the_batched_bench() -> None:
    lines = [{"pl": 1, "speed_pp": 200.0, "speed_tg": 20.0}, {"pl": 8, "speed_pp": 210.0, "speed_tg": 70.0}]
    output = "\n".join(["some words", *map(json.dumps, lines)])
    assert contenders.read_batched_bench(output) == Rates(200.0, 20.0, 8, 70.0)
    with pytest.raises(ValueError, match="found \\[1\\]"):
        contenders.read_batched_bench(json.dumps(lines[0]))
    with pytest.raises(ValueError, match="no rates"):
        contenders.read_rates("")
    broken = contenders.Contender("x", ("false",), contenders.read_rates)
    with pytest.raises(CommandFailed, match="x: exit code 1"):
        broken.run()


def test_rivals_stand_side_by_side(tmp_path: Path) -> None:
    found = contenders.contenders(tmp_path, tmp_path, 2)
    assert [one.name for one in found][:4] == ["quire bf16", "llama.cpp BF16", "quire int8", "llama.cpp Q8_0"]
    assert len(found) == len(contenders.QUIRE) + len(contenders.LLAMA) + len(contenders.TRANSFORMERS)
    assert not any("llama" in one.name for one in contenders.contenders(tmp_path, None, 2))


@pytest.mark.parametrize(
    ("value", "at_most", "bound", "verdict"),
    [
        (None, False, None, "not measured"),
        (1.2, False, None, "short of the gate"),
        (1.5, False, None, "gate"),
        (2.0, False, None, "stretch"),
        (1.2, False, 1.3, "at the bound"),
        (1.0, False, 1.3, "short of the gate"),
        (1.2, False, 1.45, "short of the gate"),
        (1.5, False, 1.6, "at the bound"),
        (1.2, True, None, "stretch"),
        (1.6, True, None, "gate"),
        (1.8, True, None, "short of the gate"),
    ],
)
def test_verdicts(value: float | None, at_most: bool, bound: float | None, verdict: str) -> None:
    gate, stretch = (1.7, 1.4) if at_most else (1.4, 1.8)
    assert Goal("C0", "what", value, "x", gate, stretch, at_most=at_most, bound=bound).verdict == verdict


def test_rows_from_figures() -> None:
    served = compare.Result(256, 64, 16, 1, [], [
        compare.Load(name, level, 1, 0, rate, [rate], 1.0, 1.0, 1.0, tpot, tpot, tpot, tpot)
        for name, level, rate, tpot in (("quire", 1, 20.0, 40.0), ("vllm", 1, 10.0, 80.0), ("quire", 8, 80.0, 90.0),
                                        ("vllm", 8, 50.0, 99.0), ("llama.cpp", 8, 40.0, 120.0))
    ])  # fmt: skip
    rates = {
        "quire bf16": [Rates(90.0, 17.0, 8, 80.0), Rates(110.0, 19.0, 8, 90.0)],
        "llama.cpp BF16": [Rates(50.0, 12.0, 8, 30.0)],
    }
    measured = Measured(LIMITS, rates, served, None, [4.0, 2.0, 2.5], [0.4])
    rows = goals(measured)
    by_what = {(row.id, row.what): row for row in rows}
    assert [row.id for row in rows][:1] + [row.id for row in rows][-3:] == ["C1", "C5", "C6", "C7"]
    first = rows[0]
    assert first.value == pytest.approx(18.0 * bench_model.weight_bytes() / 1e9 / 20.0)
    alone = by_what["C4", "llama.cpp, bf16 : BF16, decode alone"]
    assert (alone.value, alone.verdict) == (pytest.approx(1.5), "stretch")
    assert alone.bound == pytest.approx(20e9 / bench_model.weight_bytes() / 12.0)
    assert by_what["C3", "vllm, alone over HTTP, TPOT"].value == pytest.approx(2.0)
    assert by_what["C3", "vllm, 8 at once over HTTP, output tokens/s"].value == pytest.approx(1.6)
    assert by_what["C4s", "llama.cpp, 8 at once over HTTP, output tokens/s"].value == pytest.approx(2.0)
    assert rows[-2].value == 2.5
    assert "not measured" in table(rows)
    assert "**1.50 x**" in table(rows)


def test_limits_of_prefill_and_batches() -> None:
    seconds = bench_model.weight_bytes() / 100e9
    assert limit_rate(LIMITS, 16.0, "prefill") == pytest.approx(1 / seconds)
    assert limit_rate(LIMITS, 16.0, "batch_decode") == pytest.approx(
        min(8 * 20e9 / bench_model.weight_bytes(), 1 / seconds)
    )


def test_a_saved_run_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = Measured(LIMITS, {"quire bf16": [Rates(100.0, 18.0, 8, 85.0)]}, versions={"llama.cpp": "b1"})
    file, page = tmp_path / "r.json", tmp_path / "page.md"
    record("x", cpu_goals.Result(measured, [])).save(file)
    page.write_text("<!-- study cpu-goals -->\n<!-- end -->\n")
    assert cpu_goals.main(["--redraw", str(file), "--update-page", str(page)]) == 0
    assert "| C1 |" in capsys.readouterr().out
    text = page.read_text()
    assert "| quire bf16 | 100.0 | 18.0 | 85.0 |" in text
    assert "llama.cpp b1; `r.json`" in text
    with pytest.raises(CommandFailed):
        cpu_goals.main(["--redraw", str(tmp_path / "none.json")])
    assert msgspec.json.decode(file.read_bytes())["command"] == "x"
