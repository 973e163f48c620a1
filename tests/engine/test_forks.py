"""Requests with several choices: shared blocks, copies, and every way in which one of them leaves early."""

from __future__ import annotations

import pytest
from support.bench import Bench, prompt

from quire.engine.messages import Failure
from quire.engine.sequence import Status

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 4])


@DEPTHS
@pytest.mark.parametrize("length", [15, 16, 17])
def test_eight_choices_share_the_blocks_of_their_prompt(depth: int, length: int) -> None:
    bench = Bench(block_size=4, depth=depth)
    bench.add("a", prompt(length), n=8, max_tokens=6)
    while not all(bench.answers["a", choice].token_ids for choice in range(8)):
        bench.step()
    tables = [sequence.block_tables[0] for sequence in bench.sequences(Status.RUNNING)]
    assert len(tables) == 8
    assert len({tuple(table[: length // 4]) for table in tables}) == 1
    assert sum(len(step.block_copies) for step in bench.runner.log) <= 7
    bench.run()
    assert bench.runner.num_computed_tokens["a"] == length + 8 * 5
    assert sum(len(step.block_copies) for step in bench.runner.log) == (7 if length % 4 else 0)
    bench.assert_expected()


@DEPTHS
@pytest.mark.parametrize("caching", [True, False])
def test_choices_without_a_row_are_queued(depth: int, caching: bool) -> None:
    bench = Bench(max_num_seqs=3, depth=depth, caching=caching)
    bench.add("a", prompt(13), n=8, max_tokens=5)
    bench.run()
    bench.assert_expected()


@DEPTHS
def test_choices_without_a_block_are_queued(depth: int) -> None:
    bench = Bench(num_blocks=None, block_size=8, max_model_len=32, depth=depth)
    bench.add("a", prompt(29), n=4, max_tokens=3)
    bench.run()
    bench.assert_expected()


@DEPTHS
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_choices_that_end_with_their_prompt(depth: int, max_tokens: int) -> None:
    bench = Bench(depth=depth)
    bench.add("a", prompt(6), n=3, max_tokens=max_tokens)
    bench.run()
    assert bench.runner.num_computed_tokens["a"] == 6
    bench.assert_expected()


@DEPTHS
@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("choice", [0, 1, None])
def test_a_cancelled_choice_leaves_the_others_alone(depth: int, after: int, choice: int | None) -> None:
    bench = Bench(depth=depth, budget=6)
    bench.add("a", prompt(10), n=3, max_tokens=4)
    for _ in range(after):
        bench.step()
    bench.cancel("a", choice)
    bench.cancel("a", choice)
    bench.run()
    for number in range(3):
        answer = bench.answers["a", number]
        if number == choice or choice is None:
            assert answer.reason in ("aborted", "length")
        else:
            assert (answer.token_ids, answer.reason) == bench.expected["a", number]


@DEPTHS
def test_one_failing_choice_ends_its_request_and_no_other(depth: int) -> None:
    failure = Failure("model_numerics", "not finite")
    bench = Bench(
        depth=depth,
        fails=lambda step_id, row, request_id: failure if request_id == "a" and step_id == 4 and row == 1 else None,
    )
    bench.add("a", prompt(10), n=3, max_tokens=9)
    bench.add("b", prompt(11), max_tokens=9)
    bench.run()
    assert {bench.answers["a", choice].reason for choice in range(3)} == {"error"}
    assert bench.answers["b", 0].token_ids == bench.expected["b", 0][0]


def test_a_failure_of_a_choice_that_has_left_is_nobodys() -> None:
    failure = Failure("model_numerics", "not finite")
    bench = Bench(depth=2, fails=lambda step_id, row, request_id: failure if step_id == 4 and row == 0 else None)
    bench.add("a", prompt(10), n=2, max_tokens=9)
    while len(bench.runner.log) < 4:
        bench.step()
    assert bench.sequences(Status.RUNNING)[0].row == 0
    bench.cancel("a", 0)
    bench.run()
    assert bench.answers["a", 0].reason == "aborted"
    assert (bench.answers["a", 1].token_ids, bench.answers["a", 1].reason) == bench.expected["a", 1]
