"""The prefix cache at work: herds, hits, tenants, collisions, prompt log probabilities."""

from __future__ import annotations

import pytest
from support.bench import Bench, prompt

from quire.engine.flight import Draft
from quire.engine.prefix_cache import MAX_SHADOW_SECONDS

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 4])


def test_a_herd_with_one_system_prompt_computes_it_once() -> None:
    system = prompt(48)
    bench = Bench(num_blocks=512, block_size=16, max_num_seqs=64, budget=256, max_model_len=80)
    for number in range(64):
        bench.add(str(number), [*system, number % 50, number // 50, 3], max_tokens=3)
    bench.run()
    assert sum(bench.runner.num_computed_tokens.values()) == 48 + 64 * (3 + 2)
    bench.assert_expected()


@DEPTHS
def test_a_herd_waits_through_the_chunks_of_its_prefix(depth: int) -> None:
    system = prompt(60)
    bench = Bench(num_blocks=256, budget=8, depth=depth, max_model_len=80)
    for number in range(8):
        bench.add(str(number), [*system, number], max_tokens=1)
    bench.run()
    assert sum(bench.runner.num_computed_tokens.values()) == 60 + 8
    bench.assert_expected()


def test_the_herd_goes_on_when_the_one_ahead_is_cancelled() -> None:
    bench = Bench(budget=8)
    for number in range(3):
        bench.add(str(number), [*prompt(40), number], max_tokens=1)
    bench.step()
    bench.cancel("0")
    bench.run()
    assert bench.answers["0", 0].reason == "aborted"
    assert bench.answers["1", 0].token_ids == bench.expected["1", 0][0]


def test_waiting_for_the_prefix_of_another_is_bounded() -> None:
    bench = Bench(threshold=1)
    for name in ("a", "b"):
        bench.add(name, prompt(40), max_tokens=1)
        bench.step()
    assert len(bench.runner.rows) == 1
    bench.now += MAX_SHADOW_SECONDS
    bench.step()
    assert len(bench.runner.rows) == 2
    bench.run()
    bench.assert_expected()


def test_a_hit_leaves_the_last_token_to_compute() -> None:
    bench = Bench(block_size=4)
    for name in ("a", "b"):
        bench.add(name, prompt(8), max_tokens=1)
        bench.run()
    assert bench.runner.num_computed_tokens == {"a": 8, "b": 4}
    assert bench.answers["b", 0].rows[0].num_cached_tokens == 4
    statistics = bench.core.statistics()
    assert (statistics.prefix_cache_queries, statistics.prefix_cache_hits) == (8, 4)
    assert (statistics.num_prompt_tokens, statistics.num_cached_tokens) == (16, 4)


def test_generated_blocks_are_found_by_the_next_turn() -> None:
    bench = Bench(block_size=4)
    bench.add("a", prompt(6), max_tokens=10)
    bench.run()
    turn = prompt(6) + bench.answers["a", 0].token_ids
    bench.add("b", [*turn, 1, 2], max_tokens=3)
    bench.run()
    assert bench.answers["b", 0].rows[0].num_cached_tokens == 12, "15 of 16 tokens were computed"
    bench.assert_expected()


def test_salt_separates_tenants() -> None:
    bench = Bench()
    for number, salt in enumerate([b"x", b"y", b"x"]):
        bench.add(str(number), prompt(17), salt=salt, max_tokens=4)
        bench.run()
    assert [bench.answers[str(number), 0].rows[0].num_cached_tokens for number in range(3)] == [0, 0, 16]
    bench.assert_expected()


@DEPTHS
def test_no_wrong_token_with_hashes_of_six_bits(depth: int) -> None:
    bench = Bench(num_blocks=200, hash_bits=6, block_size=2, depth=depth)
    for number in range(40):
        bench.add(
            str(number), prompt(8, number % 5) + prompt(6, number % 3), salt=(b"a", b"b")[number % 2], max_tokens=6
        )
    bench.run()
    bench.assert_expected()


def test_prompt_logprobs_compute_every_position_and_publish() -> None:
    bench = Bench(block_size=4, budget=7)
    bench.add("a", prompt(17), max_tokens=1)
    bench.run()
    bench.add("b", prompt(17), max_tokens=2, prompt_logprobs=0)
    bench.run()
    assert bench.runner.num_computed_tokens["b"] == 17 + 1
    first, second = bench.answers["b", 0].rows
    assert second.prompt_logprobs is None
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [entry.token_id for entry in first.prompt_logprobs[1:] if entry] == prompt(17)[1:]
    bench.assert_expected()


def test_prompt_logprobs_of_a_choice_that_was_preempted_are_whole() -> None:
    bench = Bench(budget=7, depth=2)
    bench.add("old", prompt(3, 2), max_tokens=20)
    bench.add("a", prompt(17), max_tokens=2, prompt_logprobs=0, n=2)
    bench.step()
    bench.step()
    bench.scheduler._preempt_someone(Draft(0))
    bench.run()
    rows = [row for row in bench.answers["a", 0].rows if row.prompt_logprobs is not None]
    assert len(rows) == 1
    assert [entry.token_id for entry in rows[0].prompt_logprobs[1:]] == prompt(17)[1:]
    assert all(row.prompt_logprobs is None for row in bench.answers["a", 1].rows)
    bench.assert_expected()
