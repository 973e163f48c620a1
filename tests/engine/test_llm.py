"""`LLM`: prompts in, answers out, in this process; what is wrong is said before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, tiny_checkpoint

import quire
from quire import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8)
OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 4 << 20, "max_num_batched_tokens": 256, "threads": 1}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    with LLM(folder, **OPTIONS) as llm:
        yield llm


@pytest.fixture(autouse=True)
def idle_afterwards(llm: LLM) -> Iterator[None]:
    yield
    assert llm._core is not None
    assert llm._core.check() == ()
    assert llm._core.statistics().num_used_blocks == 0
    assert llm._core.request_ids() == ()


def test_prompts_of_every_shape(llm: LLM) -> None:
    text = "small river"
    ids = llm.tokenizer.encode(text)
    (one,) = llm.generate(text, GREEDY)
    (two,) = llm.generate(ids, GREEDY)
    three, four = llm.generate([text, ids], GREEDY)
    assert one.prompt == three.prompt == text
    assert two.prompt is four.prompt is None
    assert one.outputs == two.outputs == three.outputs == four.outputs
    assert one.prompt_token_ids == tuple(ids)
    assert len(one.outputs[0].token_ids) == 8
    assert one.outputs[0].text == llm.tokenizer.decode(one.outputs[0].token_ids)
    assert one.outputs[0].finish_reason == "length"


def test_many_prompts_come_back_in_order(llm: LLM) -> None:
    prompts = [[5 + i, *PROMPT[: i % 7]] for i in range(40)]
    together = llm.generate(prompts, GREEDY)
    assert [output.prompt_token_ids for output in together] == [tuple(prompt) for prompt in prompts]
    for index in (0, 39):
        assert llm.generate(prompts[index], GREEDY)[0].outputs == together[index].outputs


def test_each_prompt_its_own_parameters(llm: LLM) -> None:
    short, long = llm.generate([list(PROMPT)] * 2, [SamplingParams(temperature=0, max_tokens=2), GREEDY])
    assert long.outputs[0].token_ids[:2] == short.outputs[0].token_ids
    assert (len(short.outputs[0].token_ids), len(long.outputs[0].token_ids)) == (2, 8)


def test_choices_are_seeded(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=5, max_tokens=6)
    (first,) = llm.generate(list(PROMPT), params)
    assert first.outputs == llm.generate(list(PROMPT), params)[0].outputs
    assert [choice.index for choice in first.outputs] == [0, 1, 2, 3]
    assert len({choice.token_ids for choice in first.outputs}) == 4
    unseeded = SamplingParams(max_tokens=12)
    assert len({llm.generate(list(PROMPT), unseeded)[0].outputs[0].token_ids for _ in range(3)}) > 1


def test_a_stop_string_ends_one_choice(llm: LLM) -> None:
    (free,) = llm.generate(list(PROMPT), GREEDY)
    text = free.outputs[0].text
    stop = text[len(text) // 2 :][:3]
    (stopped,) = llm.generate(list(PROMPT), SamplingParams(temperature=0, max_tokens=8, stop=(stop,)))
    choice = stopped.outputs[0]
    assert choice.text == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def test_a_stop_token_ends_with_its_id(llm: LLM) -> None:
    tokens = llm.generate(list(PROMPT), GREEDY)[0].outputs[0].token_ids
    params = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=(tokens[3],))
    choice = llm.generate(list(PROMPT), params)[0].outputs[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", tokens[3])
    assert choice.token_ids == tokens[: tokens.index(tokens[3]) + 1]
    later = SamplingParams(temperature=0, max_tokens=8, min_tokens=6, stop_token_ids=(tokens[3],))
    assert len(llm.generate(list(PROMPT), later)[0].outputs[0].token_ids) >= 6


def test_logprobs_of_answer_and_prompt(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate(list(PROMPT), params)
    entries = output.outputs[0].logprobs
    assert entries is not None
    assert [entry.token_id for entry in entries] == list(output.outputs[0].token_ids)
    assert all(entry.rank == 1 and len(entry.top) == 2 for entry in entries)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is not None
    assert output.prompt_logprobs[0].logprob is None
    assert [entry and entry.token_id for entry in output.prompt_logprobs] == list(PROMPT)
    scored = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=1)
    (only,) = llm.generate(list(PROMPT), scored)
    assert only.outputs[0].token_ids == ()
    assert only.prompt_logprobs == output.prompt_logprobs


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "small river"}]
    (one,) = llm.chat(messages, GREEDY)
    assert one.prompt == "<|im_start|>user\nsmall river<|im_end|>\n<|im_start|>assistant\n"
    assert one.outputs == llm.generate(one.prompt, GREEDY)[0].outputs
    assert [output.outputs for output in llm.chat([messages, messages], GREEDY)] == [one.outputs] * 2


def test_defaults_are_the_models(llm: LLM) -> None:
    prompt = list(PROMPT) * 86
    (output,) = llm.generate(prompt[:1020])
    assert len(output.outputs[0].token_ids) <= 4
    assert llm.default_sampling_params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompts", "params", "words"),
    [
        ("x", SamplingParams(temperature=3), r"temperature: 3 is not a number within 0\.\.2"),
        ("x", SamplingParams(logprobs=21), "logprobs: 21"),
        ("x", SamplingParams(stop_token_ids=(10**6,)), r"stop_token_ids\[0\]"),
        ("x", [GREEDY, GREEDY], "2 of them for 1 prompts"),
        ("", GREEDY, r"prompts\[0\]: is empty"),
        ([[5], []], GREEDY, r"prompts\[1\]: is empty"),
        ([[5, -1]], GREEDY, r"prompts\[0\]: token id -1"),
        ([5, 10**9], GREEDY, r"prompts\[0\]: token id 1000000000"),
        ([[5] * 1020], GREEDY, r"1020 tokens and max_tokens 8 .* 1024"),
        (["x", 5], GREEDY, "mixed"),
    ],
)
def test_what_is_wrong_is_said_first(llm: LLM, prompts: Any, params: Any, words: str) -> None:
    assert llm._core is not None
    steps = llm._core.statistics().num_steps
    with pytest.raises(ValueError, match=words):
        llm.generate(prompts, params)
    assert llm._core.statistics().num_steps == steps


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_leaving_early_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    core = llm._core
    assert core is not None
    step, calls = core.step, itertools.count()

    def interrupted(now: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step(now)

    monkeypatch.setattr(core, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([list(PROMPT)] * 5, GREEDY)
    monkeypatch.undo()
    assert len(llm.generate(list(PROMPT), GREEDY)[0].outputs[0].token_ids) == 8


def test_closed_is_closed(tmp_path: Path) -> None:
    llm = LLM(tiny_checkpoint(tmp_path, "gpt2"), **OPTIONS)
    assert llm.facts.max_model_len == 1024
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("x")


def test_the_starter_model_is_the_default() -> None:
    with LLM(max_model_len=128, max_num_seqs=2, max_num_batched_tokens=128, threads=1) as llm:
        (answer,) = llm.chat(
            [{"role": "user", "content": "Who are you?"}], SamplingParams(temperature=0, max_tokens=12)
        )
    assert answer.outputs[0].text.strip()


def test_the_public_names_are_these() -> None:
    assert quire.LLM is LLM
    assert quire.SamplingParams is SamplingParams
