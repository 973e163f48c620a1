"""The runner on a device, with a stub in its place: the same answers as the runner on the CPU, two steps in flight."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import device_stub
from support.bare_engine import MAX_MODEL_LEN, Engine, Prompts, Results, Setup
from support.checkpoints import tiny_checkpoint
from support.device_engine import DeviceEngine
from support.subjects import SEEDED, PreemptOften, assert_same, ids, neighbours, replace_params, subjects
from support.tensor_kernels import TensorKernels
from torch import Tensor

from quire.engine.decode_graphs import buckets
from quire.engine.faults import Faults
from quire.engine.loader import load_model
from quire.engine.messages import Add, Cancel, pack_ids, unpack_ids
from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.engine.packed_words import Staging
from quire.engine.roster import Roster
from quire.engine.sampling_params import SamplingParams
from quire.kernels.fused import SamplingTensors

ALTERNATING: dict[str, Any] = {
    "num_hidden_layers": 2,
    "use_sliding_window": True,
    "sliding_window": 24,
    "layer_types": ["full_attention", "sliding_attention"],
}
SMALL = (1, 2, 4)
"""Buckets that the larger steps do not fit into."""


def load(tmp_path_factory: pytest.TempPathFactory, family: str, **fields: Any) -> Decoder:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("device"), family, **fields)
    torch.set_num_threads(1)
    return load_model(folder, read_model_config(folder, "tiny"), TensorKernels(), dtype=torch.float32)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(tmp_path_factory, "llama")


def requests() -> Prompts:
    """The subjects, and every kind of edit of the logits, several choices, and answers that end at once."""
    allowed = (5, 6, 7, 8)
    edited = {
        "edited-bias": SamplingParams(temperature=0, max_tokens=6, logit_bias={7: 3.0, 9: -100.0}, logprobs=1),
        "edited-allowed": replace_params(SEEDED, allowed_token_ids=(*allowed, 200), max_tokens=6),
        "edited-words": replace_params(SEEDED, bad_words=((5,), (6, 7), (8, 6, 8)), allowed_token_ids=allowed),
        "edited-stops": SamplingParams(temperature=0, max_tokens=9, min_tokens=5, stop_token_ids=tuple(range(300))),
        "edited-penalties": replace_params(SEEDED, frequency_penalty=0.7, presence_penalty=-0.2, max_tokens=12),
        "edited-filters": replace_params(SEEDED, top_k=3, top_p=1.0, min_p=0.1),
        "edited-choices": replace_params(SEEDED, n=3, max_tokens=5),
        "edited-one-token": SamplingParams(temperature=0, max_tokens=1),
        "edited-no-token": SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=2),
    }
    return subjects() | {name: (ids(40 + i, 5 + 3 * i), params) for i, (name, params) in enumerate(edited.items())}


def one_by_one(decoder: Decoder, prompts: Prompts) -> Results:
    """Each request by itself, on the runner of the CPU."""
    results: Results = {}
    for name, request in prompts.items():
        results |= Engine(decoder, Setup()).run({name: request})
    return results


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> Results:
    return one_by_one(decoder, requests())


def assert_sound(engine: DeviceEngine) -> None:
    """Nothing waited for the device but `collect`, and no block was written that a step in flight held."""
    assert engine.device.syncs == []
    assert engine.device.num_synchronized == 0
    assert engine.runner.blocks.faults == []


@pytest.mark.parametrize(("depth", "graphs"), [(1, True), (2, False), (2, True)])
def test_answers_are_those_of_the_cpu_runner(decoder: Decoder, alone: Results, depth: int, graphs: bool) -> None:
    engine = DeviceEngine(decoder, Setup(), depth=depth, graphs=graphs, watch=depth == 2)
    assert_same(engine.run(neighbours() | requests()), alone)
    assert_sound(engine)
    assert (engine.device.num_replays > 0) is graphs


def in_chunks(decoder: Decoder) -> DeviceEngine:
    return DeviceEngine(decoder, Setup(budget=24, chunk=7), graph_sizes=SMALL, seed=1)


def preempted(decoder: Decoder) -> DeviceEngine:
    return DeviceEngine(decoder, Setup(), faults=PreemptOften(), graph_sizes=SMALL)


def preempted_with_a_prefix_cache(decoder: Decoder) -> DeviceEngine:
    setup = Setup(prefix_caching=True, block_size=4, budget=64)
    return DeviceEngine(decoder, setup, faults=PreemptOften(), graph_sizes=SMALL, seed=2)


def four_steps_in_flight(decoder: Decoder) -> DeviceEngine:
    return DeviceEngine(decoder, Setup(), depth=4, faults=PreemptOften(), graph_sizes=SMALL)


@pytest.mark.parametrize("make", [in_chunks, preempted, preempted_with_a_prefix_cache, four_steps_in_flight])
def test_nothing_around_a_request_changes_it(
    decoder: Decoder, alone: Results, make: Callable[[Decoder], DeviceEngine]
) -> None:
    engine = make(decoder)
    assert_same(engine.run(requests()), alone)
    assert_sound(engine)
    if make is not in_chunks:
        assert engine.num_preempted() > 0


def test_a_pool_that_is_too_small_changes_nothing(decoder: Decoder, alone: Results) -> None:
    first = {f"other-{i}": (ids(200 + i, 2), replace_params(SEEDED, max_tokens=40)) for i in range(6)}
    setup = Setup(num_tokens=MAX_MODEL_LEN, block_size=4, budget=128)
    engine = DeviceEngine(decoder, setup, graph_sizes=SMALL)
    chosen = subjects()
    assert_same(engine.run(first | chosen), {key: alone[key] for key in alone if key[0] in chosen})
    assert engine.preempted_subjects() > 0
    assert_sound(engine)


def test_windows_slide_on_the_device_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    decoder = load(tmp_path_factory, "qwen2", **ALTERNATING)
    prompts = {f"subject-{count}": (ids(count, count), replace_params(SEEDED, max_tokens=30)) for count in (5, 60)}
    engine = DeviceEngine(decoder, Setup(block_size=4), graph_sizes=SMALL)
    assert len(engine.cache.groups) == 2
    assert_same(engine.run(prompts), one_by_one(decoder, prompts))
    assert_sound(engine)


class Chance(Faults):
    """Preempts, now and then."""

    def __init__(self, chooser: random.Random) -> None:
        self._chooser = chooser

    def rarely(self, name: str) -> bool:
        return name == "scheduler.preempt" and self._chooser.random() < 0.1


@pytest.mark.parametrize("seed", range(2))
def test_random_comings_and_goings(decoder: Decoder, alone: Results, seed: int) -> None:
    """Requests come, are cancelled and preempted at any time; what each one got is what it gets alone, or begins so."""
    chooser = random.Random(seed)
    setup = Setup(num_tokens=384, block_size=4, budget=40, prefix_caching=chooser.random() < 0.5, max_num_seqs=6)
    engine = DeviceEngine(decoder, setup, faults=Chance(chooser), seed=seed)
    waiting = [name for name in requests() if name != "edited-choices"]
    chooser.shuffle(waiting)
    cancelled: set[str] = set()
    found: dict[str, list[int]] = {}
    ended: set[str] = set()
    while waiting or engine.core.has_work():
        if waiting and chooser.random() < 0.4:
            name = waiting.pop()
            prompt, params = requests()[name]
            found[name] = []
            engine.core.add(Add(name, pack_ids(prompt), params), 0.0)
        running = [name for name in found if name not in ended and name not in cancelled]
        if running and chooser.random() < 0.04:
            cancelled.add(name := chooser.choice(running))
            engine.core.cancel(Cancel(name, None, "client_gone"), 0.0)
        outputs = engine.core.step(lambda: 0.0)
        for row in outputs.rows if outputs else ():
            found[row.request_id] += unpack_ids(row.token_ids)
            ended |= {row.request_id} if row.finish_reason else set()
    for name, tokens in found.items():
        wanted = alone[name, 0].tokens
        assert tokens == wanted or (name in cancelled and tokens == wanted[: len(tokens)]), name
    assert engine.core.check() == ()
    assert_sound(engine)


def test_a_decode_step_sends_one_copy_and_launches_two_recordings(decoder: Decoder) -> None:
    engine = DeviceEngine(decoder, Setup(), graph_sizes=SMALL, watch=True)
    for i in range(4):
        params = replace_params(SEEDED, max_tokens=30, logprobs=None)
        engine.core.add(Add(f"subject-{i}", pack_ids(ids(i, 8)), params), 0.0)
    for _ in range(3):
        engine.core.step(lambda: 0.0)
    device = engine.device
    before = (device.num_enqueued, device.num_replays, device.num_waits)
    for _ in range(5):
        engine.core.step(lambda: 0.0)
    after = (device.num_enqueued, device.num_replays, device.num_waits)
    # Enqueued: words, compute, choose. No block is new in these steps. Waited for: the result of the step before.
    assert [new - old for new, old in zip(after, before, strict=True)] == [15, 10, 5]
    assert_sound(engine)


# --- what the stub must notice ---


def early(self: Roster) -> None:
    """`settle` that does not wait for steps in flight."""
    for sequence in self.leaving:
        self._release(sequence)
    self.leaving = []


def test_a_block_that_is_freed_too_early_is_noticed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roster, "settle", early)
    engine = DeviceEngine(decoder, Setup(num_tokens=MAX_MODEL_LEN, block_size=4, shuffle=False), graph_sizes=SMALL)
    for i in range(4):
        engine.core.add(Add(f"first-{i}", pack_ids(ids(i, 40)), replace_params(SEEDED, max_tokens=20)), 0.0)
    engine.core.step(lambda: 0.0)
    engine.core.step(lambda: 0.0)
    for i in range(4):
        engine.core.cancel(Cancel(f"first-{i}", None, "client_gone"), 0.0)
        engine.core.add(Add(f"second-{i}", pack_ids(ids(9 + i, 40)), SEEDED), 0.0)
    watched = engine.runner.blocks
    assert watched.faults == []
    with contextlib.suppress(ValueError):  # the scheduler finds its sequences changed, later
        engine.core.step(lambda: 0.0)
    assert "in flight holds" in watched.faults[0]
    reused = next(index for index, event in enumerate(watched.order) if event.startswith("reuse"))
    assert watched.order[:reused].count("complete 2") == 0


def mismatch(engine: DeviceEngine, alone: Results) -> bool:
    """Whether the answers are wrong, or none come."""
    chosen = subjects()
    try:
        assert_same(engine.run(chosen), {key: alone[key] for key in alone if key[0] in chosen})
    except (AssertionError, KeyError, ValueError, IndexError):
        return True
    return False


def test_a_buffer_that_is_written_before_it_was_sent_is_noticed(
    decoder: Decoder, alone: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(self: Staging) -> Any:
        self._next, self._marks = 0, [None] * len(self._marks)
        return right(self)

    right = Staging.begin
    assert not mismatch(DeviceEngine(decoder, Setup(), graph_sizes=SMALL), alone)
    monkeypatch.setattr(Staging, "begin", begin)
    assert mismatch(DeviceEngine(decoder, Setup(), graph_sizes=SMALL), alone)


def test_a_result_that_is_read_too_early_is_noticed(
    decoder: Decoder, alone: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_stub.StubMark, "wait", lambda self: None)
    assert mismatch(DeviceEngine(decoder, Setup(), graph_sizes=SMALL), alone)


def test_a_wait_in_a_step_is_noticed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(self: TensorKernels, scores: Tensor, sampling: SamplingTensors) -> Tensor:
        tokens = right(self, scores, sampling)
        assert bool((tokens >= 0).all())
        return tokens

    right = TensorKernels.sample
    monkeypatch.setattr(TensorKernels, "sample", sample)
    engine = DeviceEngine(decoder, Setup(), graphs=False, watch=True)
    engine.run({"one": (ids(1, 3), SEEDED)})
    assert set(engine.device.syncs) >= {"__bool__"}
    with pytest.raises(AssertionError, match="waits in a recording"):
        DeviceEngine(decoder, Setup(), graph_sizes=(1,), watch=True)


def test_a_recording_repeats_kernels_and_not_the_hosts_decisions() -> None:
    device = device_stub.StubDevice()
    source, target, factor = torch.ones(3), torch.zeros(3), [2]

    def work() -> None:
        target.copy_(source * factor[0])

    replay = device.capture(work)
    source.fill_(5.0)
    factor[0] = 100
    device.enqueue(replay)
    device.synchronize()
    assert target.tolist() == [10.0, 10.0, 10.0]


def test_buckets() -> None:
    assert buckets(1) == (1,)
    assert buckets(3) == (1, 2, 3)
    assert buckets(30) == (1, 2, 4, 8, 16, 24, 30)
    assert buckets(2000)[-1] == 512
