"""From configuration to engine: what is refused, what is found, and what the engine process says while it starts."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.checkpoints import tiny_checkpoint
from support.toy_model import TOY_SPEC, ToyKernels, ToyModel

from quire.engine import precision, warm_up
from quire.engine.__main__ import serve
from quire.engine.config import EngineConfig
from quire.engine.dumps import Dumps
from quire.engine.errors import CapacityError, ModelError, QuireError, UsageError
from quire.engine.hardware import Hardware
from quire.engine.kv_cache import KVCache
from quire.engine.memory_transport import MemoryEngineTransport, MemoryHttpTransport, memory_pair
from quire.engine.messages import (
    Add,
    Answer,
    Cancel,
    Configure,
    FromEngine,
    Progress,
    Query,
    Ready,
    Shutdown,
    StartFailed,
    StepOutputs,
    pack_ids,
)
from quire.engine.models.architectures import read_model_config
from quire.engine.models.config import ModelConfig
from quire.engine.plan import CachePlan
from quire.engine.precision import Precision, choose_precision
from quire.engine.process import build_engine
from quire.engine.progress_page import ProgressPage
from quire.engine.resolve import Resolved, resolve
from quire.engine.runner import ModelRunner
from quire.engine.sampling_params import SamplingParams
from quire.engine.warm_up import choose_threads, find_token_budget
from quire.kernels.cpu.library import LibraryMissing

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")


@pytest.fixture(scope="module")
def model_config(folder: Path) -> ModelConfig:
    return read_model_config(folder, "tiny")


def configuration(folder: Path, **fields: Any) -> EngineConfig:
    options: dict[str, Any] = {
        "kv_cache_memory_bytes": 2 * MIB,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "threads": 1,
    } | fields
    return EngineConfig(model=str(folder), model_name="tiny", **options)


def resolved(model_config: ModelConfig, **fields: Any) -> Resolved:
    return resolve(EngineConfig(model="folder", model_name="tiny", **fields), model_config, Hardware(cores=6))


def test_what_was_left_open_is_found(model_config: ModelConfig) -> None:
    assert resolved(model_config) == Resolved(
        device="cpu",
        threads=6,
        block_size=16,
        max_model_len=1024,
        max_model_len_given=False,
        max_num_seqs=64,
        max_num_batched_tokens=None,
        vocab_size=model_config.vocab_size,
    )


def test_what_was_asked_for_is_kept(model_config: ModelConfig) -> None:
    found = resolved(model_config, threads=3, max_model_len=1024, block_size=256, tokenizer_vocab_size=100)
    assert (found.threads, found.max_model_len, found.max_model_len_given) == (3, 1024, True)
    assert (found.block_size, found.vocab_size) == (256, 100)
    assert resolved(model_config, max_num_batched_tokens=16).max_num_seqs == 16


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_model_len": 1025}, ["--max-model-len 1025", "1024"]),
        ({"max_model_len": 0}, ["--max-model-len 0", "at least 1"]),
        ({"block_size": 0}, ["--block-size 0"]),
        ({"block_size": 7}, ["--block-size 7", "power of two"]),
        ({"block_size": 512}, ["--block-size 512", "256"]),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 7}, ["--max-num-batched-tokens 7", "--max-num-seqs 8"]),
        ({"max_num_seqs": -1}, ["--max-num-seqs -1"]),
        ({"num_blocks_override": 0}, ["--num-gpu-blocks-override 0"]),
        ({"kv_cache_memory_bytes": 0}, ["--kv-cache-memory-bytes 0"]),
        ({"long_prefill_token_threshold": 0}, ["--long-prefill-token-threshold 0"]),
        ({"threads": 0}, ["--threads 0"]),
        ({"device": "cuda"}, ["--device cuda", "nobody looked for one", "--device cpu"]),
        ({"gpu_memory_utilization": 0.8}, ["--gpu-memory-utilization 0.8", "--kv-cache-memory-bytes"]),
        ({"batch_invariant": True, "kernels": "reference"}, ["--batch-invariant", "--kernels cpu"]),
    ],
)
def test_settings_that_cannot_be_honoured(fields: dict[str, Any], words: list[str], model_config: ModelConfig) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(model_config, **fields)
    for word in words:
        assert word in str(caught.value)


def precision_of(model_config: ModelConfig, **fields: Any) -> Precision:
    return choose_precision(model_config, EngineConfig(model="m", model_name="m", **fields), "cpu")


def test_without_compiled_kernels_the_cpu_decides(model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(model_config, torch_dtype="bfloat16")
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: None)
    found = precision_of(half, kernels="pytorch")
    assert (found.stored, found.activations, found.cache) == ("float32", "float32", "float32")
    assert "this CPU has no bfloat16 instructions" in found.reason
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: "amx_bf16")
    found = precision_of(half, kernels="pytorch")
    assert found.reason == "bfloat16: the checkpoint is bfloat16 and this CPU has amx_bf16"
    assert (found.stored, found.activations, found.cache) == ("bfloat16", "bfloat16", "bfloat16")
    assert precision_of(model_config, kernels="pytorch").stored == "float32"
    assert precision_of(half, kernels="pytorch", dtype="float16").stored == "float16"
    assert precision_of(half, kernels="pytorch", kv_cache_dtype="float32").cache == "float32"


def test_the_compiled_kernels_keep_the_checkpoints_weights(
    model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "usable", lambda: ("avx2",))
    half = replace(model_config, torch_dtype="bfloat16")
    found = precision_of(half)
    assert (found.name, found.activations, found.cache) == ("bfloat16", "float32", "bfloat16")
    assert precision_of(half, quantization="int4", kv_cache_dtype="int8").name == "int4"
    assert precision_of(half, kv_cache_dtype="int8").slot_bytes(64) == 68


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"quantization": "int8"},
            "--quantization int8: only the compiled CPU kernels .* they were not built",
        ),
        ({"kv_cache_dtype": "int8", "kernels": "reference"}, "int8: .*--kernels reference was asked for"),
    ],
)
def test_what_only_the_compiled_kernels_have(
    fields: dict[str, Any], words: str, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> tuple[str, ...]:
        raise LibraryMissing("they were not built")

    monkeypatch.setattr(precision, "usable", missing)
    with pytest.raises(UsageError, match=words):
        precision_of(model_config, **fields)


def test_ready_tells_weights_and_cache_apart(folder: Path) -> None:
    _, ready = build_engine(configuration(folder, kv_cache_dtype="float16"))
    assert (ready.dtype, ready.cache_dtype) == ("float32", "float16")


def test_a_tokenizer_of_another_model_is_refused(model_config: ModelConfig) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        resolved(model_config, tokenizer_vocab_size=model_config.vocab_size + 1)


@pytest.mark.parametrize(
    ("seconds_per_token", "num_tokens_that_fit", "budget", "longest"),
    [
        (0.0005, 2048, 480, 64),
        (0.1, 2048, 32, 32),
        (1e-7, 2048, 8192, 2048),
        (1e-4, 200, 2496, 128),
        (1e-4, 8, 2496, 8),
    ],
)
def test_token_budget_is_what_a_quarter_second_computes(
    seconds_per_token: float, num_tokens_that_fit: int, budget: int, longest: int
) -> None:
    model = ToyModel(50)
    cache = KVCache([TOY_SPEC], CachePlan(512, 4, 2048, bytes=0), torch.float32, torch.device("cpu"))
    runner = ModelRunner(model, ToyKernels(), cache, max_num_seqs=1, max_model_len=2048, block_size=4, vocab_size=50)
    found = find_token_budget(
        runner,
        num_tokens_that_fit=num_tokens_that_fit,
        block_size=4,
        clock=lambda: sum(model.calls) * seconds_per_token,
    )
    assert abs(found - budget) <= 32
    assert found % 32 == 0
    assert max(model.calls) == longest


@pytest.mark.parametrize(
    ("seconds", "chosen"), [({1: 0.10, 4: 0.05}, 4), ({1: 0.10, 4: 0.09}, 1), ({1: 0.1, 4: 3.0}, 1)]
)
def test_threads_that_do_not_help_are_left_to_others(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    threads = [0]
    monkeypatch.setattr(warm_up, "run_prompt", lambda *arguments: now.append(now[-1] + seconds[threads[-1]]))
    runner = ModelRunner.__new__(ModelRunner)
    found = choose_threads(runner, 4, threads.append, num_tokens_that_fit=64, block_size=16, clock=lambda: now[-1])
    assert found == threads[-1] == chosen


def test_ready_tells_the_facts(folder: Path) -> None:
    heard: list[Progress] = []
    core, ready = build_engine(configuration(folder, max_num_batched_tokens=None), heard.append)
    assert (ready.max_model_len, ready.block_size, ready.max_num_seqs) == (1024, 16, 4)
    assert ready.kv_cache_bytes == ready.num_blocks * 16 * 3 * 2 * 2 * 16 * 4 <= 2 * MIB
    assert ready.max_num_batched_tokens >= 32
    assert ready.weights_bytes > 10_000
    assert (ready.dtype, ready.cache_dtype) == ("float32", "float32")
    assert {"weights", "kv_cache", "warmup"} <= set(ready.seconds)
    assert {progress.stage for progress in heard} == {"weights", "warmup"}
    assert core.check() == ()
    assert not core.has_work()


@pytest.mark.parametrize(("family", "num_groups"), [("mistral", 1), ("qwen2", 2)])
def test_layers_with_a_window_let_go_of_blocks_that_others_need(family: str, num_groups: int, tmp_path: Path) -> None:
    """Four long answers at once in a cache that could not hold all their blocks; nobody is preempted."""
    windows = {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 2}
    overrides = {"sliding_window": 24, "num_hidden_layers": 4} | (windows if family == "qwen2" else {})
    folder = tiny_checkpoint(tmp_path, family, **overrides)
    # Of 208 tokens: 13 blocks in each group, of which a window of 24 keeps 3.
    num_blocks = 4 * (13 * (num_groups - 1) + 3) + 5
    core, ready = build_engine(configuration(folder, max_model_len=208, num_blocks_override=num_blocks + 4))
    assert ready.num_cache_groups == num_groups
    params = SamplingParams(temperature=0, max_tokens=188)
    for number in range(4):
        core.add(Add(str(number), pack_ids([5 + number] * 20), params), 0.0)
    used = 0
    while core.has_work():
        core.step(lambda: 0.0)
        used = max(used, core.statistics().num_used_blocks)
    assert core.statistics().num_preemptions == 0
    assert used <= num_blocks
    assert core.check() == ()
    runner = core._runner
    assert isinstance(runner, ModelRunner)
    assert not any(tensor[0].any() for pair in runner._cache.layers for tensor in pair), "the null block is written"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"num_blocks_override": 10, "max_model_len": 161}, CapacityError),
        ({"kv_cache_memory_bytes": 1 << 50}, CapacityError),
        ({"kernels": "triton"}, UsageError),
        ({"model": "/nowhere"}, ModelError),
    ],
)
def test_a_start_that_fails_says_why(folder: Path, fields: dict[str, Any], kind: type[QuireError]) -> None:
    with pytest.raises(kind):
        build_engine(msgspec.structs.replace(configuration(folder), **fields))


class Serving:
    """`serve` in a thread, spoken to over a memory transport."""

    def __init__(self, configure: Configure, *more: Any) -> None:
        self.http: MemoryHttpTransport
        self.engine: MemoryEngineTransport
        self.engine, self.http = memory_pair()
        self.page = ProgressPage.create()
        self.code: int | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        for message in (configure, *more):
            self.http.send(message)
        self.thread.start()

    def _serve(self) -> None:
        self.code = serve(self.engine, self.page, Dumps())

    async def until(self, kind: type[FromEngine]) -> list[FromEngine]:
        heard: list[FromEngine] = []
        while not any(isinstance(message, kind) for message in heard):
            heard += await self.http.receive()
        return heard

    def join(self) -> int | None:
        self.thread.join(timeout=20)
        return self.code


async def test_the_process_serves_and_shuts_down(folder: Path) -> None:
    serving = Serving(Configure(configuration(folder), "build"))
    assert isinstance((await serving.until(Ready))[-1], Ready)
    params = SamplingParams(temperature=0, max_tokens=5)
    serving.http.send(Add("a" * 32, pack_ids([5, 6, 7]), params))
    tokens = b""
    finished = False
    while not finished:
        for message in await serving.until(StepOutputs):
            assert isinstance(message, StepOutputs)
            for row in message.rows:
                tokens += row.token_ids
                finished |= row.finish_reason == "length"
    assert len(tokens) == 5 * 4
    serving.http.send(Add("b" * 32, pack_ids([5]), msgspec.structs.replace(params, max_tokens=1000)))
    serving.http.send(Cancel("b" * 32, None, "client_gone"))
    serving.http.send(Query(7, "check"))
    heard = await serving.until(Answer)  # what the cancel gave may come behind it
    answer = next(message for message in heard if isinstance(message, Answer))
    assert (answer.query_id, answer.violations, answer.request_ids) == (7, (), ())
    assert serving.page.read().steps >= 5
    serving.http.send(Shutdown())
    assert serving.join() == 0
    assert serving.page.read().state == "stopping"


async def test_the_process_says_why_it_cannot_start(folder: Path) -> None:
    serving = Serving(Configure(configuration(folder, block_size=7), "build"))
    failed = (await serving.until(StartFailed))[-1]
    assert isinstance(failed, StartFailed)
    assert failed.exit_code == 2 == serving.join()
    assert "--block-size 7" in failed.message


async def test_a_planted_fault_while_loading_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    serving = Serving(Configure(configuration(folder), "build", {"load.raise": "planted"}))
    failed = (await serving.until(StartFailed))[-1]
    assert isinstance(failed, StartFailed)
    assert "planted" in failed.message
    assert serving.join() == failed.exit_code == 1


@pytest.mark.parametrize(("fault", "code"), [("forward.raise", "internal_error"), ("forward.nan", "model_numerics")])
def test_planted_faults_meet_one_request(folder: Path, fault: str, code: str) -> None:
    core, _ = build_engine(configuration(folder), planted={fault: "99"})
    params = SamplingParams(temperature=0, max_tokens=3)
    for name, prompt in {"good": [5, 6, 7], "bad": [5, 99, 7], "other": [8]}.items():
        core.add(Add(name, pack_ids(prompt), params), 0.0)
    ends = {}
    for now in itertools.count(1):
        outputs = core.step(lambda now=now: float(now))  # type: ignore[misc]
        for row in outputs.rows if outputs else ():
            if row.finish_reason:
                ends[row.request_id] = row.failure.code if row.failure else row.finish_reason
        if not core.has_work():
            break
    assert ends == {"good": "length", "bad": code, "other": "length"}
    assert core.check() == ()
    assert core.statistics().num_used_blocks == 0
