"""What is asked and when: the same from the same seed, of the lengths that were ordered."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from quire.benchmarks import datasets
from quire.benchmarks.arrivals import arrival_times
from quire.benchmarks.backends import Request
from quire.benchmarks.datasets import Choice, DatasetError
from quire.benchmarks.words import TooFewWords, Words, guessed, learn, local_encode
from quire.engine.model_folder import STARTER

RANDOM = Choice(random_input_len=40, random_output_len=10, random_range_ratio=0.5, random_prefix_len=8)
REPEATED = Choice(
    name="prefix-repetition",
    prefix_repetition_prefix_len=32,
    prefix_repetition_suffix_len=5,
    prefix_repetition_num_prefixes=3,
    prefix_repetition_output_len=6,
)


@pytest.fixture
async def words() -> Words:
    return await learn(local_encode(STARTER))


async def tokens_of(text: str) -> int:
    return len(text.split())


async def load(choice: Choice, count: int, words: Words, as_text: bool = False) -> list[Request]:
    return await datasets.load(choice, count, words, as_text=as_text, tokens_of=tokens_of)


@pytest.mark.parametrize("choice", [RANDOM, REPEATED])
async def test_a_seed_gives_the_same_requests(choice: Choice, words: Words) -> None:
    assert await load(choice, 20, words) == await load(choice, 20, words)
    assert await load(choice, 20, words) != await load(replace(choice, seed=1), 20, words)


@pytest.mark.parametrize("choice", [RANDOM, REPEATED])
async def test_a_prompt_has_exactly_its_tokens_as_ids_and_as_text(choice: Choice, words: Words) -> None:
    tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    ids, texts = await load(choice, 20, words), await load(choice, 20, words, as_text=True)
    for one, other in zip(ids, texts, strict=True):
        assert isinstance(one.prompt, tuple)
        assert len(one.prompt) == one.input_tokens == other.input_tokens
        assert isinstance(other.prompt, str)
        assert tokenizer.encode(other.prompt, add_special_tokens=False).ids == list(one.prompt)


async def test_random_lengths_fill_their_range_behind_one_prefix(words: Words) -> None:
    requests = await load(RANDOM, 300, words)
    assert {request.input_tokens for request in requests} == set(range(28, 69))
    assert {request.output_tokens for request in requests} == set(range(5, 16))
    assert len({request.prompt[:8] for request in requests}) == 1
    assert len({request.prompt[:9] for request in requests}) > 50
    fixed = await load(replace(RANDOM, random_range_ratio=0.0, random_prefix_len=0), 5, words)
    assert {(request.input_tokens, request.output_tokens) for request in fixed} == {(40, 10)}
    with pytest.raises(DatasetError, match="random-range-ratio"):
        await load(replace(RANDOM, random_range_ratio=1.0), 5, words)


async def test_prefixes_repeat_evenly_and_suffixes_do_not(words: Words) -> None:
    requests = await load(REPEATED, 31, words)
    counts = sorted(len([r for r in requests if r.prompt[:32] == p]) for p in {r.prompt[:32] for r in requests})
    assert counts == [10, 10, 11]
    assert len({request.prompt for request in requests}) == 31


async def test_sharegpt_takes_the_first_two_turns_of_usable_pairs(tmp_path: Path) -> None:
    def conversation(*turns: str) -> dict[str, object]:
        return {"conversations": [{"from": "human", "value": turn} for turn in turns]}

    file = tmp_path / "share.json"
    usable = [conversation(f"question number {n} of many", f"an answer to {n} follows") for n in range(8)]
    other = [conversation("alone"), conversation("too short", "far too short"), {"id": 3}]
    file.write_text(json.dumps(usable + other))
    choice = Choice(name="sharegpt", path=file)
    requests = await load(choice, 8, guessed())
    assert len({request.prompt for request in requests}) == 8
    assert {(request.input_tokens, request.output_tokens) for request in requests} == {(5, 5)}
    assert await load(choice, 8, guessed()) == requests
    assert await load(replace(choice, seed=5), 8, guessed()) != requests
    assert len(await load(choice, 20, guessed())) == 20
    assert (await load(replace(choice, sharegpt_output_len=9), 1, guessed()))[0].output_tokens == 9


async def test_custom_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    chat = {"messages": [{"role": "user", "content": "hello there"}], "output_tokens": 3}
    file.write_text('{"prompt": "one two"}\n\n' + json.dumps(chat) + "\n")
    requests = await load(Choice(name="custom", path=file, custom_output_len=7), 3, guessed())
    assert [(request.input_tokens, request.output_tokens) for request in requests] == [(2, 7), (2, 3), (2, 7)]
    assert requests[1].prompt == tuple(chat["messages"])  # type: ignore[arg-type]
    for line, complaint in (("{", "line 1"), ("[]", '"prompt"'), ("", "no prompt")):
        file.write_text(line)
        with pytest.raises(DatasetError, match=complaint):
            await load(Choice(name="custom", path=file), 1, guessed())
    with pytest.raises(DatasetError, match="no such file"):
        await load(Choice(name="custom", path=tmp_path / "none"), 1, guessed())
    with pytest.raises(DatasetError, match="needs --dataset-path"):
        await load(Choice(name="sharegpt"), 1, guessed())


async def test_words_of_a_tokenizer_that_has_none_are_refused() -> None:
    async def pieces(text: str) -> list[int]:
        return [1, *text.encode()]

    with pytest.raises(TooFewWords):
        await learn(pieces)
    assert guessed().prompt([0, 1], as_text=False) == " the of"


def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for() -> None:
    def gaps(burstiness: float, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.diff(arrival_times(20_001, 8.0, burstiness, seed))

    for burstiness in (0.25, 1.0, 4.0):
        found = gaps(burstiness)
        assert found.mean() == pytest.approx(1 / 8, rel=0.05)
        # The coefficient of variation of a gamma distribution is shape ** -1/2; 1 for Poisson.
        assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    assert (gaps(1.0) == gaps(1.0)).all()
    assert (gaps(1.0) != gaps(1.0, seed=1)).any()


def test_arrivals_begin_at_once_and_ascend() -> None:
    times = arrival_times(50, 3.0, 0.5, 7)
    assert times[0] == 0.0
    assert all(earlier <= later for earlier, later in itertools.pairwise(times))
    assert arrival_times(3, float("inf"), 1.0, 0) == [0.0, 0.0, 0.0]
    assert arrival_times(0, 3.0, 1.0, 0) == []
    with pytest.raises(ValueError, match="positive"):
        arrival_times(3, 0.0, 1.0, 0)
