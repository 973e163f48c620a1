"""The runner on a device, with a stub in its place: the same answers as the runner on the CPU, two steps in flight."""

from __future__ import annotations

import pytest
import torch
from support.bare_engine import Engine, Prompts, Results, Setup
from support.checkpoints import tiny_checkpoint
from support.device_engine import DeviceEngine
from support.subjects import SEEDED, PreemptOften, assert_same, ids, neighbours, replace_params, subjects
from support.tensor_kernels import TensorKernels

from quire.engine.loader import load_model
from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.engine.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    torch.set_num_threads(1)
    return load_model(folder, read_model_config(folder, "tiny"), TensorKernels(), dtype=torch.float32)


def requests() -> Prompts:
    """The subjects, and what only a device could get wrong: every kind of edit of the logits, several choices."""
    edited = {
        "edited-bias": SamplingParams(temperature=0, max_tokens=6, logit_bias={7: 3.0, 9: -100.0}, logprobs=1),
        "edited-allowed": replace_params(SEEDED, allowed_token_ids=(5, 6, 7, 8, 200), max_tokens=6),
        "edited-words": replace_params(SEEDED, bad_words=((5,), (6, 7), (5, 6, 8)), allowed_token_ids=(5, 6, 7, 8)),
        "edited-stops": SamplingParams(temperature=0, max_tokens=9, min_tokens=5, stop_token_ids=tuple(range(300))),
        "edited-penalties": replace_params(SEEDED, frequency_penalty=0.7, presence_penalty=-0.2, max_tokens=12),
        "edited-filters": replace_params(SEEDED, top_k=3, top_p=1.0, min_p=0.1),
        "edited-choices": replace_params(SEEDED, n=3, max_tokens=5),
        "edited-one-token": SamplingParams(temperature=0, max_tokens=1),
        "edited-no-token": SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=2),
    }
    return subjects() | {name: (ids(40 + i, 5 + 3 * i), params) for i, (name, params) in enumerate(edited.items())}


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> Results:
    """Each request by itself, on the runner of the CPU."""
    results: Results = {}
    for name, request in requests().items():
        results |= Engine(decoder, Setup()).run({name: request})
    return results


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_answers_are_those_of_the_cpu_runner(decoder: Decoder, alone: Results, depth: int, graphs: bool) -> None:
    engine = DeviceEngine(decoder, Setup(), depth=depth, graphs=graphs)
    assert_same(engine.run(neighbours() | requests()), alone)
    assert engine.device.syncs == []
    assert engine.runner.blocks.faults == []
    assert (engine.device.num_replays > 0) is graphs
