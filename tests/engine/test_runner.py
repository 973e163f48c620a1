"""The runner on hand-made steps: rows, blocks, samples, and faults that stay with the request that has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest
import torch
from support.device_stub import StubDevice
from support.toy_model import TOY_SPEC, ToyKernels, ToyModel
from torch import Tensor

from quire.engine.device_runner import DeviceRunner
from quire.engine.kv_cache import KVCache
from quire.engine.messages import pack_ids
from quire.engine.plan import CachePlan
from quire.engine.runner import ModelRunner
from quire.engine.runner_seams import StepWatch
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Sampled, Step

VOCAB = 50
BLOCK = 4
GREEDY = SamplingParams(temperature=0)


def on_a_device(*arguments: Any, **options: Any) -> DeviceRunner:
    """A `DeviceRunner` on a stub that computes as late as it can; kernel by kernel."""
    return DeviceRunner(*arguments, StubDevice(), max_num_batched_tokens=64, **options)


class Bench:
    """A runner on a toy model, and steps written by hand; block ids are dealt from a shuffled deck."""

    make_runner: Callable[..., Any] = ModelRunner

    def __init__(
        self, encode: bool = False, watch: StepWatch | None = None, vocab_size: int = VOCAB, num_blocks: int = 64
    ) -> None:
        self.model = ToyModel(VOCAB)
        plan = CachePlan(num_blocks, BLOCK, max_model_len=64, bytes=0)
        self.cache = KVCache([TOY_SPEC], plan, torch.float32, torch.device("cpu"))
        for layer in self.cache.layers:
            for tensor in layer:
                tensor.fill_(math.nan)
        self.runner = self.make_runner(
            self.model,
            ToyKernels(),
            self.cache,
            max_num_seqs=16,
            max_model_len=64,
            block_size=BLOCK,
            vocab_size=vocab_size,
            watch=watch,
        )
        generator = torch.Generator().manual_seed(1)
        self.deck: list[int] = torch.randperm(num_blocks, generator=generator).tolist()
        self.encode = encode
        self.step_id = 0
        self.lengths: dict[int, int] = {}
        self.blocks: dict[int, list[int]] = {}

    def step(
        self,
        *,
        new: Iterable[NewRow] = (),
        work: Iterable[RowWork],
        copies: tuple[tuple[int, int], ...] = (),
        released: tuple[int, ...] = (),
    ) -> Step:
        self.step_id += 1
        step = Step(self.step_id, tuple(work), tuple(new), copies, released)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=Step) if self.encode else step

    def execute(self, step: Step) -> Sampled:
        self.runner.forward(step)
        self.runner.sample(step)
        return self.runner.collect()

    def run(self, **parts: Any) -> Sampled:
        return self.execute(self.step(**parts))

    def new(self, row: int, prompt: list[int], params: SamplingParams = GREEDY, choice: int = 0) -> NewRow:
        self.lengths[row], self.blocks[row] = 0, []
        return NewRow(row, f"request-{row}", choice, params, pack_ids(prompt), len(prompt))

    def work(
        self, row: int, num_tokens: int = 1, samples: tuple[int, ...] | None = None, prompt_logprobs: bool = False
    ) -> RowWork:
        start = self.lengths[row]
        self.lengths[row] = start + num_tokens
        missing = -(-self.lengths[row] // BLOCK) - len(self.blocks[row])
        fresh = tuple(self.deck.pop() for _ in range(missing))
        self.blocks[row] += fresh
        return RowWork(row, start, num_tokens, (fresh,), (row,) if samples is None else samples, prompt_logprobs)


@pytest.fixture(params=[ModelRunner, on_a_device], ids=["cpu", "device"], autouse=True)
def every_runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds for both runners."""
    monkeypatch.setattr(Bench, "make_runner", staticmethod(request.param))


def generate(prompts: dict[int, list[int]], count: int, bench: Bench | None = None) -> dict[int, list[int]]:
    bench = bench or Bench()
    new = [bench.new(row, prompt) for row, prompt in prompts.items()]
    first = bench.run(new=new, work=[bench.work(row, len(prompt)) for row, prompt in prompts.items()])
    tokens = {row.row: list(row.token_ids) for row in first.rows}
    return advance(bench, tokens, count - 1)


def advance(bench: Bench, tokens: dict[int, list[int]], count: int) -> dict[int, list[int]]:
    """`count` decode steps of the rows in `tokens`, which gains what they sample."""
    for _ in range(count):
        for sampled in bench.run(work=[bench.work(row) for row in tokens]).rows:
            assert sampled.failure is None
            tokens[sampled.row] += sampled.token_ids
    return tokens


def codes(sampled: Sampled) -> list[str | None]:
    return [row.failure.code if row.failure else None for row in sampled.rows]


PROMPTS = {0: [1, 2, 3], 3: [4, 5, 6, 7, 8, 9, 10], 5: [11], 7: [12, 13, 14, 15]}


def test_batch_equals_alone() -> None:
    together = generate(PROMPTS, 10)
    assert together == {row: generate({row: prompt}, 10)[row] for row, prompt in PROMPTS.items()}
    assert len({tuple(tokens) for tokens in together.values()}) == 4


def test_decoded_bytes_of_a_step_run_the_same() -> None:
    assert generate(PROMPTS, 6, Bench(encode=True)) == generate(PROMPTS, 6)


def test_chunks_equal_the_whole_prompt() -> None:
    prompt = list(range(1, 12))
    bench = Bench()
    assert bench.run(new=[bench.new(0, prompt)], work=[bench.work(0, 3, ())]).rows == ()
    assert bench.run(work=[bench.work(0, 6, ())]).rows == ()
    tokens = {0: list(bench.run(work=[bench.work(0, 2)]).rows[0].token_ids)}
    assert advance(bench, tokens, 3) == generate({0: prompt}, 4)


def test_a_returning_row_continues() -> None:
    prompt = [3, 1, 4, 1, 5]
    whole = generate({0: prompt}, 8)[0]
    bench = Bench()
    new_row = msgspec.structs.replace(bench.new(2, prompt + whole[:4]), num_prompt_tokens=len(prompt))
    tokens = {2: list(bench.run(new=[new_row], work=[bench.work(2, 9)]).rows[0].token_ids)}
    assert advance(bench, tokens, 3)[2] == whole[4:]


def test_forks_share_full_blocks_and_copy_the_partial_one() -> None:
    params = SamplingParams(temperature=1.5, seed=9, logprobs=1)
    prompt = [1, 2, 3, 4, 5, 6]
    alone = []
    for choice in range(3):
        bench = Bench()
        first = bench.run(new=[bench.new(0, prompt, params, choice)], work=[bench.work(0, 6)])
        alone.append(advance(bench, {0: list(first.rows[0].token_ids)}, 4)[0])
    bench = Bench()
    rows = [bench.new(choice, prompt, params, choice) for choice in range(3)]
    first = bench.run(new=rows, work=[bench.work(0, 6, samples=(0, 1, 2))])
    forked = {row.row: list(row.token_ids) for row in first.rows}
    shared, partial = bench.blocks[0]
    copies, work = [], [bench.work(0)]
    for row in (1, 2):
        target = bench.deck.pop()
        copies.append((partial, target))
        bench.lengths[row], bench.blocks[row] = 7, [shared, target]
        work.append(RowWork(row, 6, 1, ((shared, target),), (row,)))
    for sampled in bench.run(work=work, copies=tuple(copies)).rows:
        forked[sampled.row] += sampled.token_ids
    assert list(advance(bench, forked, 3).values()) == alone
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_released_rows_are_forgotten_and_used_again() -> None:
    bench = Bench()
    bench.run(new=[bench.new(0, [1, 2, 3])], work=[bench.work(0, 3)])
    again = bench.run(new=[bench.new(0, [9, 8, 7, 6])], work=[bench.work(0, 4)], released=(0,))
    assert list(again.rows[0].token_ids) == generate({0: [9, 8, 7, 6]}, 1)[0]


def test_prompt_logprobs_in_chunks_equal_whole() -> None:
    params = SamplingParams(temperature=0, prompt_logprobs=2)
    prompt = list(range(20, 31))
    bench = Bench()
    whole = bench.run(new=[bench.new(0, prompt, params)], work=[bench.work(0, 11, None, True)]).prompt_logprobs[0]
    assert [entry.token_id for entry in whole] == prompt[1:]
    assert all(len(entry.top_token_ids) == 2 for entry in whole)
    bench = Bench()
    first = bench.run(new=[bench.new(0, prompt, params)], work=[bench.work(0, 4, (), True)]).prompt_logprobs[0]
    second = bench.run(work=[bench.work(0, 7, None, True)]).prompt_logprobs[0]
    assert first + second == whole
    assert len(first) == 4


def test_slices_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(seed=3, prompt_logprobs=1, logprobs=2)

    def run() -> Sampled:
        bench = Bench()
        new = [bench.new(row, prompt, params) for row, prompt in PROMPTS.items()]
        return bench.run(new=new, work=[bench.work(r, len(p), None, True) for r, p in PROMPTS.items()])

    whole = run()
    monkeypatch.setattr("quire.engine.runner.slice_rows", lambda vocab_size: 2)
    assert run() == whole


def raise_for(token: int) -> Callable[[Tensor], None]:
    def before(input_ids: Tensor) -> None:
        if (input_ids == token).any():
            raise RuntimeError("planted")

    return before


@pytest.mark.parametrize("guilty", [0, 3, 5, 7])
def test_a_forward_pass_that_raises_convicts_one_row(guilty: int) -> None:
    innocent = {row: prompt for row, prompt in PROMPTS.items() if row != guilty}
    clean = generate(innocent, 5)
    poisoned = PROMPTS | {guilty: [*PROMPTS[guilty][:-1], 49]}
    bench = Bench()
    bench.model.before = raise_for(49)
    new = [bench.new(row, prompt) for row, prompt in poisoned.items()]
    sampled = bench.run(new=new, work=[bench.work(row, len(prompt)) for row, prompt in poisoned.items()])
    assert codes(sampled) == ["internal_error" if row == guilty else None for row in PROMPTS]
    assert len(bench.model.calls) == 5  # four rows, two halves, two rows
    tokens = {row.row: list(row.token_ids) for row in sampled.rows if row.row != guilty}
    assert advance(bench, tokens, 4) == clean


def test_running_out_of_memory_convicts_the_row_that_needs_it() -> None:
    def before(input_ids: Tensor) -> None:
        if len(input_ids) > 8:
            raise torch.OutOfMemoryError("planted")

    bench = Bench()
    bench.model.before = before
    prompts = {0: [1] * 5, 1: [2] * 9, 2: [3] * 5}
    new = [bench.new(row, prompt) for row, prompt in prompts.items()]
    sampled = bench.run(new=new, work=[bench.work(row, len(prompt)) for row, prompt in prompts.items()])
    assert codes(sampled) == [None, "internal_error", None]


def test_a_row_that_fails_without_sampling_is_named() -> None:
    bench = Bench()
    bench.model.before = raise_for(49)
    new = [bench.new(0, [49] * 8), bench.new(1, [1, 2])]
    sampled = bench.run(new=new, work=[bench.work(0, 4, ()), bench.work(1, 2)])
    assert sampled.failed_rows[0].code == "internal_error"
    assert [(row.row, row.failure) for row in sampled.rows] == [(1, None)]


def test_siblings_of_a_failed_row_fail_with_it() -> None:
    bench = Bench()
    bench.model.before = raise_for(49)
    new = [bench.new(0, [49], choice=0), bench.new(1, [49], choice=1)]
    assert codes(bench.run(new=new, work=[bench.work(0, 1, (0, 1))])) == ["internal_error"] * 2


def test_a_head_that_raises_fails_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    head = bench.model.logits
    guilty = ToyModel(VOCAB).embedding[49]

    def logits(hidden: Tensor) -> Tensor:
        if any(torch.equal(row, guilty) for row in hidden):
            raise RuntimeError("planted")
        return head(hidden)

    monkeypatch.setattr(bench.model, "logits", logits)
    new = [bench.new(row, [token]) for row, token in enumerate([1, 49, 3])]
    sampled = bench.run(new=new, work=[bench.work(row, 1) for row in range(3)])
    whole_step = isinstance(bench.runner, DeviceRunner)  # it samples a step's rows together or not at all
    assert codes(sampled) == (["internal_error"] * 3 if whole_step else [None, "internal_error", None])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=1), SamplingParams(temperature=0, prompt_logprobs=0)])
def test_logits_that_are_no_numbers_fail_their_row(value: float, params: SamplingParams) -> None:
    bench = Bench()
    bench.model.embedding[49] = value
    asked = params.prompt_logprobs is not None
    new = [bench.new(row, prompt, params) for row, prompt in enumerate([[1, 2, 3], [1, 49], [5]])]
    work = [bench.work(row, count, None, asked) for row, count in enumerate([3, 2, 1])]
    sampled = bench.run(new=new, work=work)
    assert codes(sampled) == [None, "model_numerics", None]
    clean = Bench()
    first = clean.run(new=[clean.new(0, [1, 2, 3], params)], work=[clean.work(0, 3)])
    assert sampled.rows[0].token_ids == first.rows[0].token_ids


def test_padded_columns_do_not_exist() -> None:
    bench = Bench(vocab_size=VOCAB - 17)
    bench.model.head[VOCAB - 17 :] = math.nan
    params = [GREEDY, SamplingParams(temperature=2, seed=1), SamplingParams(seed=2, top_k=0, top_p=0.99, logprobs=20)]
    new = [bench.new(row, [1 + row, 2], each) for row, each in enumerate(params)]
    first = bench.run(new=new, work=[bench.work(row, 2) for row in range(3)])
    tokens = advance(bench, {row.row: list(row.token_ids) for row in first.rows}, 20)
    assert all(token < VOCAB - 17 for sampled in tokens.values() for token in sampled)
    assert first.rows[2].logprobs is not None
    assert max(first.rows[2].logprobs[0].top_token_ids) < VOCAB - 17


def test_prompt_logprobs_that_are_no_numbers_fail_in_the_middle_of_a_prompt() -> None:
    bench = Bench()
    bench.model.embedding[49] = math.nan
    new_row = bench.new(0, [49, 1, 2, 3, 4], SamplingParams(temperature=0, prompt_logprobs=0))
    sampled = bench.run(new=[new_row], work=[bench.work(0, 3, (), True)])
    assert sampled.failed_rows[0].code == "model_numerics"
    assert sampled.prompt_logprobs == {}


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([1, VOCAB], GREEDY),
        ([1, -1], GREEDY),
        ([1] * 65, GREEDY),
        ([1, 2], SamplingParams(temperature=1, seed=None)),
        ([1, 2], SamplingParams(temperature=0, logit_bias={VOCAB + 5: 1.0})),
    ],
)
def test_a_row_that_cannot_be_prepared_fails_alone(prompt: list[int], params: SamplingParams) -> None:
    bench = Bench()
    new = [bench.new(0, prompt, params), bench.new(1, [1, 2, 3])]
    sampled = bench.run(new=new, work=[bench.work(0, len(prompt)), bench.work(1, 3)])
    assert codes(sampled) == ["internal_error", None]
    assert list(sampled.rows[1].token_ids) == generate({1: [1, 2, 3]}, 1)[1]


def test_work_beyond_its_row_fails_that_row() -> None:
    bench = Bench()
    new = [bench.new(0, [1, 2, 3]), bench.new(1, [1, 2, 3])]
    bench.run(new=new, work=[bench.work(0, 3), bench.work(1, 3)])
    assert codes(bench.run(work=[RowWork(0, 3, 4, (), (0,)), bench.work(1)])) == ["internal_error", None]


def test_a_step_that_fails_as_a_whole_leaves_a_runner_that_works() -> None:
    bench = Bench()
    with pytest.raises(KeyError):
        bench.run(work=[RowWork(3, 0, 1, ((1,),), (3,))])
    again = bench.run(new=[bench.new(0, [1, 2, 3])], work=[bench.work(0, 3)], released=(3,))
    assert list(again.rows[0].token_ids) == generate({0: [1, 2, 3]}, 1)[0]


def test_results_are_collected_in_the_order_of_the_steps() -> None:
    bench = Bench()
    steps = [bench.step(new=[bench.new(row, [row])], work=[bench.work(row)]) for row in range(3)]
    for step in steps:
        bench.runner.forward(step)
    with pytest.raises(ValueError, match="step 2 is sampled"):
        bench.runner.sample(steps[1])
    bench = Bench()
    steps = [bench.step(new=[bench.new(row, [row])], work=[bench.work(row)]) for row in range(3)]
    for step in steps:
        bench.runner.forward(step)
        bench.runner.sample(step)
    assert [bench.runner.collect().step_id for _ in steps] == [1, 2, 3]


def test_the_watch_hears_names_and_layers() -> None:
    heard: list[object] = []

    class Watch:
        def begin_step(self, request_ids: Sequence[str]) -> None:
            heard.append(tuple(request_ids))

        def tick(self) -> None:
            heard.append("tick")

    bench = Bench(watch=Watch())
    bench.run(new=[bench.new(1, [1])], work=[bench.work(1)])
    assert heard == [("request-1",), "tick"]
