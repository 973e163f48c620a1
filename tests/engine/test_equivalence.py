"""The contract of answers: a request's tokens and logprobs are its own, whatever happens around it.

Every variant runs the same requests as `alone` does, one by one in a fresh engine: in a batch, in chunks, from the
prefix cache, preempted, with other blocks. Tokens must be equal and log probabilities within 1e-5; and each variant is
run a second time with one wrong block id planted, which it must notice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bare_engine import MAX_MODEL_LEN, Engine, Result, Results, Setup
from support.checkpoints import tiny_checkpoint
from support.greedy import Driver
from support.subjects import (
    GREEDY,
    SEEDED,
    TOLERANCE,
    PreemptOften,
    assert_same,
    ids,
    neighbours,
    numbers,
    replace_params,
    subjects,
)

from quire import kernels
from quire.engine.loader import load_model
from quire.engine.messages import pack_ids
from quire.engine.model_folder import STARTER
from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Step

FAMILIES = ("llama", "mistral", "gpt2", "alternating")
ALTERNATING: dict[str, Any] = {
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "sliding_window": 24,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}
"""What makes a tiny Qwen2 one of two cache groups."""
MARGIN = 1e-3


@cache
def load(family: str, folder: Path) -> Decoder:
    if family == "starter":
        path = STARTER
    elif family == "alternating":
        path = tiny_checkpoint(folder, "qwen2", **ALTERNATING)
    else:
        path = tiny_checkpoint(folder, family)
    torch.set_num_threads(1)
    return load_model(path, read_model_config(path, family), kernels.select("auto", "cpu"), dtype=torch.float32)


@pytest.fixture(params=FAMILIES)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(request.param, tmp_path_factory.getbasetemp() / "tiny")


_alone: dict[int, Results] = {}


def alone(decoder: Decoder) -> Results:
    """Each subject by itself in an engine of its own; computed once a model."""
    if id(decoder) not in _alone:
        results: Results = {}
        for name, request in subjects().items():
            results |= Engine(decoder, Setup()).run({name: request})
        _alone[id(decoder)] = results
    return _alone[id(decoder)]


def in_a_batch(decoder: Decoder, plant: bool) -> Results:
    return Engine(decoder, Setup(), plant=plant).run(neighbours() | subjects())


def in_chunks(decoder: Decoder, plant: bool) -> Results:
    return Engine(decoder, Setup(budget=24, chunk=7), plant=plant).run(subjects())


def from_the_prefix_cache(decoder: Decoder, plant: bool) -> Results:
    engine = Engine(decoder, Setup(prefix_caching=True))
    engine.run({f"first-{name}": request for name, request in subjects().items()})
    engine.plant = plant
    results = engine.run(subjects())
    assert results["subject-long", 0].num_cached_tokens == 64
    assert results["subject-scored", 0].num_cached_tokens == 0
    return results


def preempted(decoder: Decoder, plant: bool) -> Results:
    engine = Engine(decoder, Setup(), plant=plant, faults=PreemptOften())
    results = engine.run(subjects())
    assert engine.preempted_subjects() > 0
    return results


def preempted_with_a_prefix_cache(decoder: Decoder, plant: bool) -> Results:
    engine = Engine(decoder, Setup(prefix_caching=True, block_size=4, budget=64), plant=plant, faults=PreemptOften())
    results = engine.run(subjects())
    assert engine.preempted_subjects() > 0
    return results


def in_blocks_of_1(decoder: Decoder, plant: bool) -> Results:
    return Engine(decoder, Setup(block_size=1), plant=plant).run(subjects())


def in_blocks_of_128(decoder: Decoder, plant: bool) -> Results:
    return Engine(decoder, Setup(block_size=128), plant=plant).run(subjects())


def in_blocks_in_order(decoder: Decoder, plant: bool) -> Results:
    return Engine(decoder, Setup(shuffle=False), plant=plant).run(subjects())


VARIANTS: tuple[Callable[[Decoder, bool], Results], ...] = (
    in_a_batch,
    in_chunks,
    from_the_prefix_cache,
    preempted,
    preempted_with_a_prefix_cache,
    in_blocks_of_1,
    in_blocks_of_128,
    in_blocks_in_order,
)


def test_the_subjects_can_tell(decoder: Decoder) -> None:
    """Answers vary, no greedy choice is a close call, and another first token gives another answer."""
    results = alone(decoder)
    assert all(result.finish_reason == "length" for result in results.values())
    assert len({tuple(result.tokens) for result in results.values()}) == len(results)
    for name in ("subject-short", "subject-block", "subject-long", "subject-scored"):
        for entry in results[name, 0].logprobs:
            assert entry.top_logprobs[0] - entry.top_logprobs[1] > MARGIN
    prompt, params = subjects()["subject-block"]
    other = Engine(decoder, Setup()).run({"subject-block": ([*ids(999, 1), *prompt[1:]], params)})
    assert numbers(other["subject-block", 0].logprobs) != pytest.approx(
        numbers(results["subject-block", 0].logprobs), abs=100 * TOLERANCE
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_alone(variant: Callable[[Decoder, bool], Results], decoder: Decoder) -> None:
    assert_same(variant(decoder, False), alone(decoder))


def test_the_starter_model_answers_equally(tmp_path: Path) -> None:
    decoder = load("starter", tmp_path)
    assert_same(in_a_batch(decoder, False), alone(decoder))


@pytest.mark.parametrize("decoder", ["llama", "alternating"], indirect=True)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_block_id_is_noticed(variant: Callable[[Decoder, bool], Results], decoder: Decoder) -> None:
    found = variant(decoder, True)
    with pytest.raises(AssertionError):
        assert_same(found, alone(decoder))


def test_a_pool_that_is_too_small_changes_nothing(tmp_path: Path) -> None:
    """Requests that came first grow past what the pool holds; the subjects, which are younger, give way."""
    decoder = load("llama", tmp_path)
    first = {f"other-{i}": (ids(200 + i, 2), replace_params(SEEDED, max_tokens=40)) for i in range(6)}
    engine = Engine(decoder, Setup(num_tokens=MAX_MODEL_LEN, block_size=4, budget=128))
    results = engine.run(first | subjects())
    assert engine.preempted_subjects() > 0
    assert_same(results, alone(decoder))


def test_two_groups_answer_as_one_cache_that_keeps_everything(tmp_path: Path) -> None:
    """The driver gives every layer the same block table, and lets nothing go: only the masks know of the window."""
    decoder = load("alternating", tmp_path)
    engine = Engine(decoder, Setup(block_size=4))
    assert [(group.window, group.layers) for group in engine.cache.groups] == [(None, (0, 2)), (24, (1, 3))]
    (keys, _), (other_keys, _) = engine.cache.layers[:2]
    assert keys.data_ptr() == other_keys.data_ptr(), "one block is as large in both groups"
    prompts = {f"subject-{count}": (ids(count, count), replace_params(GREEDY, max_tokens=24)) for count in (5, 90)}
    found = engine.run(prompts)
    for name, (prompt, params) in prompts.items():
        tokens, _ = Driver(decoder).generate(prompt, params.max_tokens)
        assert found[name, 0].tokens == tokens


def choices_alone(decoder: Decoder, prompt: list[int], params: SamplingParams) -> Results:
    """Each choice as a row of its own, one after the other, by hand-made steps."""
    engine = Engine(decoder, Setup())
    num_blocks, num_groups = -(-(len(prompt) + params.max_tokens) // 16), len(engine.cache.groups)
    results: Results = {}
    step_ids = itertools.count(1)
    for choice in range(params.n):
        first = engine.first_block + choice * num_groups * num_blocks
        blocks = tuple(tuple(range(first + g, first + num_groups * num_blocks, num_groups)) for g in range(num_groups))
        new_row = NewRow(choice, "single", choice, params, pack_ids(prompt), len(prompt))
        work = [RowWork(choice, 0, len(prompt), blocks, (choice,))]
        work += [RowWork(choice, len(prompt) + i, 1, (), (choice,)) for i in range(params.max_tokens - 1)]
        result = results["subject", choice] = Result([], [], [], 0, "length")
        for each in work:
            step = Step(next(step_ids), (each,), (new_row,) if each is work[0] else ())
            engine.runner.forward(step)
            engine.runner.sample(step)
            (sampled,) = engine.runner.collect().rows
            result.tokens += sampled.token_ids
            result.logprobs += sampled.logprobs or ()
    return results


@pytest.mark.parametrize("num_tokens", [16, 21])
def test_eight_choices_equal_eight_requests(decoder: Decoder, num_tokens: int) -> None:
    params, prompt = replace_params(SEEDED, n=8, max_tokens=4), ids(8, num_tokens)
    single = choices_alone(decoder, prompt, params)
    assert len({tuple(result.tokens) for result in single.values()}) > 1
    assert_same(Engine(decoder, Setup(prefix_caching=True)).run({"subject": (prompt, params)}), single)
    planted = Engine(decoder, Setup(prefix_caching=True), plant=True).run({"subject": (prompt, params)})
    with pytest.raises(AssertionError):
        assert_same(planted, single)
