"""`quire plan`: what it says is what the engine then takes, and what `quire serve` then refuses."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import tiny_checkpoint
from support.gguf_files import write_gguf
from support.source_tree import ROOT

from quire.benchmarks.shapes import SHAPES
from quire.clients import cli
from quire.clients.plan import make_plan
from quire.clients.plan_report import report
from quire.engine import hardware
from quire.engine.devices import GPUS
from quire.engine.errors import CapacityError, ModelError
from quire.engine.forecast import Forecast
from quire.engine.plan import PROCESS_BYTES

GIB = 1 << 30


@pytest.fixture
def llama_8b(tmp_path: Path) -> Path:
    """Llama-3.1-8B's config.json and nothing else."""
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES["llama-3.1-8b"]))
    return folder


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with --json: (exit code, the object, stderr)."""

    def run(*words: str) -> tuple[int, Any, str]:
        code = cli.main(["plan", *words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def test_a_gguf_file_is_planned_as_its_folder(plan: Any, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2")
    path = write_gguf(folder, tmp_path / "model.gguf")
    (code, from_file, _), (_, from_folder, _) = (plan(str(model), "--memory", "8GiB") for model in (path, folder))
    assert code == 0
    assert from_file["weights"] == from_folder["weights"]
    assert from_file["kv_cache"] == from_folder["kv_cache"]
    assert plan(str(tmp_path / "model.gguf"))[0] == 0


TEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}, {"dtype": "bfloat16", "block_size": 32}),
    ("mistral", {}, {"max_model_len": 300, "block_size": 8}),
    ("mistral", {"sliding_window": None}, {"dtype": "float16", "kv_cache_memory_bytes": 3 << 20}),
    ("qwen2", {}, {"dtype": "bfloat16", "max_num_seqs": 3}),
    ("qwen3", {}, {"num_gpu_blocks_override": 77, "max_model_len": 500}),
    ("qwen3", {"tie_word_embeddings": True}, {"block_size": 128, "max_num_seqs": 5}),
    ("smollm", {}, {"kv_cache_memory_bytes": 1 << 20}),
    ("gpt2", {}, {"dtype": "bfloat16"}),
    ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}, {"block_size": 1, "max_model_len": 64}),
]


@pytest.mark.parametrize(("family", "overrides", "flags"), TEN)
def test_predicted_bytes_are_what_the_engine_takes(
    family: str,
    overrides: dict[str, Any],
    flags: dict[str, Any],
    plan: Any,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from quire.engine import process
    from quire.engine.kv_cache import KVCache
    from quire.server.layers import load_settings

    folder = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", family, **overrides)
    words = [str(folder)]
    for name, value in {"max_num_batched_tokens": 64, "max_num_seqs": 16, "threads": 1, **flags}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    # 1 GiB for the processes that are there already, 200 MiB more for those that are not yet.
    monkeypatch.setattr(process, "available_memory", lambda: GIB)
    caches: list[KVCache] = []
    monkeypatch.setattr(process, "KVCache", lambda *values: caches.append(KVCache(*values)) or caches[-1])
    _, ready = process.build_engine(load_settings(words, {}).to_engine_config(folder, None))
    code, found, _ = plan(*words, "--memory", str(GIB + PROCESS_BYTES))
    assert code == 0
    assert found["memory"]["weights"] == ready.weights_bytes == sum(found["weights"].values())
    assert found["memory"]["kv_cache"] == ready.kv_cache_bytes
    assert found["kv_cache"]["num_blocks"] == ready.num_blocks
    assert found["kv_cache"]["max_model_len"] == ready.max_model_len
    assert found["kv_cache"]["max_num_seqs"] == ready.max_num_seqs
    assert found["model"]["dtype"] == ready.dtype
    allocated = sum(tensor.nbytes for stripe in caches[0].stripes for tensor in stripe)
    assert allocated == pytest.approx(ready.kv_cache_bytes, rel=0.03)


REFUSED: list[list[str]] = [
    ["--memory", "8GiB"],
    ["--dtype", "float32", "--memory", "20GiB"],
    ["--kv-cache-memory-bytes", "30GiB", "--memory", "40GiB", "--dtype", "bfloat16"],
    ["--max-model-len", "131072", "--memory", "40GiB", "--dtype", "bfloat16"],
    ["--num-gpu-blocks-override", "4", "--max-model-len", "65", "--memory", "40GiB", "--dtype", "bfloat16"],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_serve_refuses_with_the_same_sentence(
    words: list[str], llama_8b: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: neither a weight nor a tokenizer is there."""
    from quire.engine import process
    from quire.server import loading
    from quire.server.layers import load_settings
    from quire.server.parsing import parse_size

    code, found, err = plan(str(llama_8b), *words)
    assert code == 5
    assert (found["fits"], found["loads"], found["advice"]) == (False, [], None)
    assert err == f"error: {found['refusal']}\n"
    at = words.index("--memory")
    memory = parse_size(words[at + 1])
    settings = load_settings([str(llama_8b), *words[:at], *words[at + 2 :]], {})
    monkeypatch.setattr(loading, "available_memory", lambda: memory)
    with pytest.raises(CapacityError) as refused:
        loading.find_model(settings, loading.LoadProgress(io.StringIO()))
    assert str(refused.value) == found["refusal"]
    monkeypatch.setattr(process, "available_memory", lambda: memory - PROCESS_BYTES)
    with pytest.raises(CapacityError) as refused:
        process.build_engine(settings.to_engine_config(llama_8b, None))
    assert str(refused.value) == found["refusal"]


def test_an_architecture_that_serve_does_not_know(plan: Any, tmp_path: Path) -> None:
    from quire.server import loading
    from quire.server.layers import load_settings

    (tmp_path / "config.json").write_text(json.dumps(SHAPES["llama-3.1-8b"] | {"architectures": ["MambaForCausalLM"]}))
    code, found, err = plan(str(tmp_path))
    assert (code, found) == (3, None)
    with pytest.raises(ModelError) as refused:
        loading.find_model(load_settings([str(tmp_path)], {}), loading.LoadProgress(io.StringIO()))
    assert err == f"error: {refused.value}\n"


def test_without_torch_and_with_nothing_but_config_json(llama_8b: Path) -> None:
    code = (
        "import sys; from quire.clients import cli; code = cli.main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'fastapi', 'tokenizers'} & set(sys.modules);"
        "print(code, heavy, file=sys.stderr)"
    )
    command = [sys.executable, "-P", "-c", code, "plan", str(llama_8b / "config.json"), "--device", "h100"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert run.stderr == "0 set()\n"
    assert "8.03 B parameters" in run.stdout


def test_the_keys_of_the_json(plan: Any) -> None:
    code, found, err = plan("--memory", "2GiB", "--context", "1k", "--prompt-len", "100")
    assert (code, err) == (0, "")
    assert {name: sorted(part) if isinstance(part, dict) else type(part).__name__ for name, part in found.items()} == {
        "model": sorted(
            ["name", "architecture", "num_layers", "parameters", "max_position_embeddings", "dtype", "dtype_reason"]
        ),
        "device": ["bandwidth_bytes", "flops", "flops_dtype", "name", "source", "title"],
        "memory": ["free", "kv_cache", "reserved", "rope_tables", "total", "weights"],
        "weights": ["attention", "embeddings", "feed_forward", "norms"],
        "kv_cache": [
            *("block_size", "bytes_per_block", "bytes_per_token", "max_model_len"),
            *("max_num_seqs", "num_blocks", "num_tokens"),
        ],
        "loads": "list",
        "prompt": ["max_num_batched_tokens", "prompt_len", "ttft_ms"],
        "assumptions": "str",
        "fits": "bool",
        "refusal": "NoneType",
        "advice": "str",
    }
    (load,) = found["loads"]
    assert load["context"] == 1000
    assert sorted(load) == ["batch", "concurrency", "context", "itl_alone_ms", "itl_ms", "tokens_per_second"]
    assert found["model"]["name"] == "starter"
    memory = found["memory"]
    assert memory["total"] == 2 * GIB == sum(size for name, size in memory.items() if name != "total")


def test_llama_on_an_h100_stands_at_its_roofline(llama_8b: Path, plan: Any) -> None:
    """PERFORMANCE, section 1, in 70 % of the datasheet's bandwidth: 15.0 GB of weights a step."""
    _, found, _ = plan(str(llama_8b), "--device", "h100", "--context", "1024", "--max-num-seqs", "32")
    assert found["kv_cache"]["bytes_per_token"] == 131_072
    (load,) = found["loads"]
    assert load["batch"] == 32
    alone, together = (15.0e9 + batch * 1024 * 131_072 for batch in (1, 32))
    assert load["itl_alone_ms"] == pytest.approx(1e3 * alone / (0.7 * 3.35e12) + 0.72, rel=0.02)
    assert load["itl_ms"] == pytest.approx(1e3 * together / (0.7 * 3.35e12) + 0.72, rel=0.02)
    assert load["tokens_per_second"] == pytest.approx(32e3 / load["itl_ms"])
    assert found["prompt"]["ttft_ms"] == pytest.approx(2 * 7.5e9 * 512 / (0.6 * 989e12) * 1e3, rel=0.4)


def test_more_work_never_takes_less_time(llama_8b: Path, plan: Any) -> None:
    found = {name: plan(str(llama_8b), "--device", name, "--dtype", "bfloat16")[1] for name in GPUS}
    for one in found.values():
        assert one["memory"]["kv_cache"] + one["memory"]["weights"] <= 0.9 * one["memory"]["total"]
        assert all(load["itl_ms"] >= load["itl_alone_ms"] for load in one["loads"])
    assert found["h200"]["loads"][0]["itl_alone_ms"] < found["a100"]["loads"][0]["itl_alone_ms"]
    longer = plan(str(llama_8b), "--device", "l4", "--prompt-len", "4096")[1]
    assert longer["prompt"]["ttft_ms"] > 7 * found["l4"]["prompt"]["ttft_ms"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "h200", "--max-model-len", "8192"], r"nothing to change: \d+ sequences of 8192 tokens"),
        (["--device", "h200", "--max-num-seqs", "8", "--context", "4096"], r"--max-num-seqs 8 bounds the batch"),
        (
            ["--device", "h100", "--kv-cache-memory-bytes", "8GiB", "--max-model-len", "32768"],
            r"only 2 sequences of 32768 tokens fit at once; --kv-cache-memory-bytes 32768MiB holds 8$",
        ),
        (
            ["--device", "h100", "--num-gpu-blocks-override", "2048", "--max-model-len", "32768"],
            r"only 1 sequence of 32768 tokens fits at once; --num-gpu-blocks-override 16384 holds 8$",
        ),
        (
            ["--device", "l4", "--max-model-len", "32768"],
            r"only 1 sequence of 32768 tokens fits at once, and there is no memory for 8 .*; --max-model-len \d+ ",
        ),
        (["--device", "l4"], r"context reduced to \d+ tokens: .*there is no memory for more"),
        (["--memory", "64GiB"], r"context reduced to \d+ tokens: .* raise --kv-cache-memory-bytes to \d+MiB"),
    ],
)
def test_advice(words: list[str], sentence: str, llama_8b: Path, plan: Any) -> None:
    assert re.search(sentence, plan(str(llama_8b), *words)[1]["advice"])


def test_advice_that_is_followed_helps(llama_8b: Path, plan: Any) -> None:
    words = [str(llama_8b), "--device", "h100", "--max-model-len", "32768"]
    advice = plan(*words, "--kv-cache-memory-bytes", "8GiB")[1]["advice"]
    amount = re.findall(r"--kv-cache-memory-bytes (\w+)", advice)[0]
    assert plan(*words, "--kv-cache-memory-bytes", amount)[1]["loads"][-1]["batch"] == 8


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--contxt", "5"], 2, "unknown flag --contxt; did you mean --context?"),
        (["--devise", "l4"], 2, "did you mean --device?"),
        (["--max-model-length", "5"], 2, "did you mean --max-model-len?"),
        (["--device", "h10"], 2, "--device h10: unknown; did you mean h100?"),
        (["--device", "toaster"], 2, "known are this, b200"),
        (["--memory", "much"], 2, "--memory much: expected a whole number"),
        (["--prompt-len", "0"], 2, "--prompt-len 0"),
        (["--context", "4096"], 2, "--context 4096: at most --max-model-len, which is 2048"),
        (["--max-model-len", "9999"], 2, "--max-model-len 9999"),
        (["--block-size", "7"], 2, "--block-size: expected a power of two"),
        (["organisation/unheard-of"], 3, "the cache in hub does not hold that name"),
        (["/nowhere/at/all"], 3, "no such folder or file"),
    ],
)
def test_usage(
    words: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere/hub")
    assert cli.main(["plan", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert err.count("\n") == 1


def test_a_hub_name_is_looked_up_in_the_cache(
    llama_8b: Path, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    entry = tmp_path / "hub" / "models--meta--Llama-3.1-8B"
    for commit, layers in (("abc", 32), ("def", 16)):
        (entry / "snapshots" / commit).mkdir(parents=True)
        text = json.dumps(SHAPES["llama-3.1-8b"] | {"num_hidden_layers": layers})
        (entry / "snapshots" / commit / "config.json").write_text(text)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    words = ["meta/Llama-3.1-8B", "--device", "h100"]
    assert plan(*words)[1]["model"]["num_layers"] == 32
    assert plan(*words, "--revision", "def")[1]["model"]["num_layers"] == 16
    assert plan(*words, "--download-dir", str(tmp_path / "hub"))[1]["model"]["name"] == "meta/Llama-3.1-8B"


def make(*words: str) -> Forecast:
    from quire.clients.plan import _parser

    return make_plan(*_parser("plan").parse_known_args(words))


def test_the_page(llama_8b: Path) -> None:
    found = make(str(llama_8b), "--device", "h100")
    page = report(found, colour=False, unicode=True)
    assert "\033" not in page
    (bar,) = (line.strip() for line in page.splitlines() if line.strip().startswith("██"))
    assert re.fullmatch(r"█+▓+▒+░?", bar)
    assert len(bar) == 60
    assert bar.count("█") == round(60 * found.memory.weights / found.memory.total) + 1  # and one for rope tables
    assert all(len(line) <= 104 for line in page.splitlines()[1:])
    plain = report(found, colour=False, unicode=False)
    assert plain.isascii()
    coloured = report(found, colour=True, unicode=True)
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == page
    for part in (
        "32 layers",
        "8.03 B parameters",
        "14.96 GiB",
        "128.00 KiB a token",
        "Advice            only 3 sequences of 131072 ",
    ):
        assert part in page


def test_the_page_of_what_does_not_fit(llama_8b: Path) -> None:
    found = make(str(llama_8b), "--dtype", "bfloat16", "--memory", "8GiB")
    page = report(found, colour=False, unicode=True)
    assert re.search(r"  █+▒×+\n", page)
    assert "× missing         7." in page
    assert "blocks" not in page


def test_colours_only_on_a_terminal(
    llama_8b: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    assert cli.main(["plan", str(llama_8b), "--device", "l40s"]) == 0
    assert "\033" not in capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert cli.main(["plan", str(llama_8b), "--device", "l40s"]) == 0
    assert "\033[34m█" in terminal.getvalue()


def test_this_machine_is_read_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.engine import devices

    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Fast(R) CPU @ 2.00GHz\nflags\t\t: fpu avx2 avx512f avx512_bf16\n")
    found = devices.this_machine(GIB, 3, info)
    assert found.title == "this machine (Fast CPU, 3 cores)"
    assert (found.flops["float32"], found.flops["bfloat16"]) == (3 * 2e9 * 64, 3 * 2e9 * 128)
    assert 1e8 < found.bandwidth < 1e13
    info.write_text("Features\t: fp asimd bf16\n")
    assert devices.this_machine(GIB, 1, info).flops == {"float32": 40e9, "bfloat16": 80e9, "float16": 80e9}


def test_the_page_in_the_documentation_is_what_is_printed(llama_8b: Path) -> None:
    page = report(make(str(llama_8b), "--device", "h100", "--context", "8192"), colour=False, unicode=True)
    shown = (ROOT / "docs" / "operations.md").read_text().replace("\n    ", "\n")
    assert page.replace(str(llama_8b), "Llama-3.1-8B") in shown


def test_the_memory_of_this_machine_is_what_is_planned_with(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 3 * GIB)
    assert plan()[1]["memory"]["total"] == 3 * GIB


def test_a_window_makes_room_for_more(llama_8b: Path, plan: Any) -> None:
    """Mistral's first model forgets what lies 4,096 tokens back."""
    words = [str(llama_8b), "--device", "h100", "--context", "65536", "--max-num-seqs", "1000"]
    whole = plan(*words)[1]["loads"][0]
    mistral = SHAPES["llama-3.1-8b"] | {
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 4096,
        "rope_scaling": None,
    }
    (llama_8b / "config.json").write_text(json.dumps(mistral))
    windowed = plan(*words)[1]["loads"][0]
    assert windowed["concurrency"] == pytest.approx(16 * whole["concurrency"], rel=0.01)
    assert windowed["itl_alone_ms"] < 0.7 * whole["itl_alone_ms"]
