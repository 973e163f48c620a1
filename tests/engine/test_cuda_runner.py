"""The runner on a GPU: transformers' tokens, and the same answers however a step is launched and whoever else runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bare_engine import Results, Setup
from support.checkpoints import FAMILIES, PROMPT, tiny_checkpoint
from support.device_engine import DeviceEngine
from support.subjects import PreemptOften, assert_same, neighbours, subjects

from quire import kernels
from quire.engine.config import EngineConfig
from quire.engine.device import CudaDevice
from quire.engine.loader import load_model
from quire.engine.messages import Add, pack_ids, unpack_ids
from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.engine.process import build_engine
from quire.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    backend = kernels.select("triton", "cuda", batch_invariant=True)
    return load_model(folder, read_model_config(folder, "tiny"), backend, dtype=torch.float32)


def engine(decoder: Decoder, **options: Any) -> DeviceEngine:
    return DeviceEngine(decoder, Setup(), device=CudaDevice(), **options)


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> Results:
    """Each subject by itself: every kernel launched by itself, one step after the other."""
    results: Results = {}
    for name, request in subjects().items():
        results |= engine(decoder, graphs=False, depth=1).run({name: request})
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path, family)
    oracle: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([list(PROMPT)])
    wanted = oracle.generate(prompt, do_sample=False, max_new_tokens=NUM_TOKENS)[0, len(PROMPT) :].tolist()
    config = EngineConfig(
        model=str(folder), model_name=family, device="cuda", dtype="float32", kv_cache_memory_bytes=64 << 20
    )
    core, ready = build_engine(config)
    assert ready.device == "cuda"
    core.add(Add("one", pack_ids(list(PROMPT)), SamplingParams(temperature=0, max_tokens=NUM_TOKENS)), 0.0)
    found: list[int] = []
    while core.has_work():
        outputs = core.step(time.monotonic)
        for row in outputs.rows if outputs is not None else ():
            found += unpack_ids(row.token_ids)
    assert found == wanted


@pytest.mark.parametrize(("graphs", "depth"), [(True, 1), (False, 2), (True, 2)])
def test_recorded_and_overlapped_steps_answer_as_plain_ones(
    decoder: Decoder, alone: Results, graphs: bool, depth: int
) -> None:
    assert_same(engine(decoder, graphs=graphs, depth=depth).run(neighbours() | subjects()), alone)


def test_preempted_answers_as_not(decoder: Decoder, alone: Results) -> None:
    found = engine(decoder, faults=PreemptOften())
    assert_same(found.run(subjects()), alone)
    assert found.num_preempted() > 0
    assert found.runner.blocks.faults == []


def test_a_device_runs_work_in_order_and_repeats_recordings() -> None:
    device = CudaDevice()
    source, target = torch.ones(3, device=device.device), torch.zeros(3, device=device.device)
    pinned = device.pinned(3)
    assert pinned.is_pinned()

    def work() -> None:
        target.copy_(source * 2)

    replay = device.capture(work)

    def change() -> None:
        source.fill_(5.0)

    def fetch() -> None:
        pinned.copy_(target.int(), non_blocking=True)

    for each in (change, replay, fetch):
        device.enqueue(each)
    device.mark().wait()
    assert pinned.tolist() == [10, 10, 10]


def test_what_a_step_takes_is_counted() -> None:
    device = CudaDevice()
    before = device.peak_bytes(lambda: None)

    def work() -> None:
        torch.zeros(1 << 20, device=device.device)

    taken = device.peak_bytes(work)
    assert taken - before >= 4 << 20
    total, free = device.memory()
    assert 0 < free <= total
    assert device.reserved_bytes() >= 0
