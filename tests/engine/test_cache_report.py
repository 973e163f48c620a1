"""The cache report says how far a prompt was cached, and why no further."""

from __future__ import annotations

import pytest
from support.asking import AskingBench
from support.bench import Bench, prompt

from quire.engine import cache_report
from quire.engine.cache_report import ExplainingIndex
from quire.engine.prefix_index import PrefixIndex, Scope

SYSTEM = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
"""Three blocks of four."""


def served(bench: AskingBench, *names: str) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """What the reports of these requests say: reason, cached tokens, position, the neighbour's tokens."""
    reports = [bench.report(name) for name in names]
    return [(each.reason, each.num_cached_tokens, each.position, each.neighbour_token_ids) for each in reports]


def ask(bench: AskingBench, name: str, tokens: list[int], salt: bytes = b"", **params: object) -> None:
    bench.add(name, tokens, salt=salt, **({"max_tokens": 1} | params))
    bench.run()


def test_a_timestamp_at_the_head_is_pointed_at() -> None:
    bench = AskingBench()
    ask(bench, "noon", [1, 2, 31, 3, *SYSTEM, 4])
    ask(bench, "later", [1, 2, 32, 3, *SYSTEM, 4])
    assert served(bench, "noon", "later") == [("never_seen", 0, 0, ()), ("diverged", 0, 2, (31, 3))]
    assert bench.report("later").num_prompt_tokens == 17
    assert bench.report("later").block_size == 4


def test_the_most_similar_of_the_cached_prompts_is_shown() -> None:
    bench = AskingBench()
    ask(bench, "near", [*SYSTEM, 1, 2, 3, 4, 9])
    ask(bench, "far", [*SYSTEM, 1, 5, 5, 5, 9])
    ask(bench, "mine", [*SYSTEM, 1, 2, 3, 7, 9])
    assert served(bench, "mine") == [("diverged", 12, 15, (4,))]


def test_another_question_after_the_same_system_prompt_diverges_at_its_first_token() -> None:
    bench = AskingBench()
    ask(bench, "first", [*SYSTEM, 1, 2, 3, 4, 5])
    ask(bench, "second", [*SYSTEM, 6, 7, 8, 9, 5])
    assert served(bench, "second") == [("diverged", 12, 12, (1, 2, 3, 4))]


def test_an_evicted_prefix_is_called_evicted() -> None:
    bench = AskingBench(num_blocks=8, max_model_len=32)
    ask(bench, "a", [*SYSTEM, 1])
    ask(bench, "b", prompt(28, first=3))
    ask(bench, "a again", [*SYSTEM, 1])
    assert served(bench, "a again")[0][0] == "evicted"
    ask(bench, "a once more", [*SYSTEM, 1])
    assert served(bench, "a once more") == [("not_full_block", 12, 12, ())]


def test_what_was_evicted_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_report, "MAX_LOST", 2)
    index = ExplainingIndex()
    keys = [index.key(None, [number], Scope()) for number in range(3)]
    for number, key in enumerate(keys):
        index.put(key, number)
    for key in keys:
        index.drop(key)
    assert [index.had(key) for key in keys] == [False, True, True]
    assert len(index) == 0
    assert not index._children


def test_a_prompt_like_no_other_has_never_been_seen() -> None:
    bench = AskingBench()
    ask(bench, "a", [*SYSTEM, 1])
    ask(bench, "b", prompt(14, first=5))
    ask(bench, "longer", [*SYSTEM, 1, 2, 3, 4, 5])
    assert served(bench, "b", "longer") == [("never_seen", 0, 0, ()), ("never_seen", 12, 12, ())]


def test_another_salt_of_the_same_key_is_told_and_that_of_another_key_is_not() -> None:
    bench = AskingBench()
    bench.keys = {"a": "mine", "b": "mine", "c": "yours"}
    ask(bench, "a", [*SYSTEM, 1], salt=b"one")
    ask(bench, "b", [*SYSTEM, 1], salt=b"two")
    ask(bench, "c", [*SYSTEM, 1], salt=b"three")
    assert served(bench, "b", "c") == [("salt", 0, 0, ()), ("never_seen", 0, 0, ())]


def test_the_tokens_of_another_salt_are_never_shown() -> None:
    bench = AskingBench()
    ask(bench, "a", [1, 2, 31, 3, 9], salt=b"one")
    ask(bench, "b", [1, 2, 32, 3, 9], salt=b"two")
    assert served(bench, "b") == [("never_seen", 0, 0, ())]


@pytest.mark.parametrize(("length", "reason"), [(12, "last_token"), (13, "not_full_block"), (15, "not_full_block")])
def test_what_can_never_come_from_the_cache(length: int, reason: str) -> None:
    bench = AskingBench()
    ask(bench, "first", prompt(length))
    ask(bench, "second", prompt(length))
    cached = (length - 1) // 4 * 4
    assert served(bench, "second") == [(reason, cached, cached, ())]


def test_prompt_log_probabilities_read_nothing() -> None:
    bench = AskingBench()
    ask(bench, "first", [*SYSTEM, 1])
    ask(bench, "second", [*SYSTEM, 1], prompt_logprobs=0)
    assert served(bench, "second") == [("prompt_logprobs", 0, 0, ())]


def test_a_cache_that_is_switched_off_says_so() -> None:
    bench = AskingBench(caching=False)
    ask(bench, "a", [*SYSTEM, 1])
    assert served(bench, "a") == [("disabled", 0, 0, ())]


def test_a_block_that_only_another_cache_group_lost_was_evicted() -> None:
    index = ExplainingIndex()
    key = index.key(None, [1, 2], Scope())
    index.put(key, 0, group=0)
    index.put(key, 1, group=1)
    index.drop(key, group=1)
    assert index.had(key)
    index.drop(key, group=0)
    assert index.had(key)


def test_one_report_comes_for_all_choices_and_none_after_preemption() -> None:
    bench = AskingBench(num_blocks=9, max_model_len=32)
    bench.add("old", prompt(10), max_tokens=20)
    bench.add("young", prompt(10, first=2), max_tokens=12, n=2)
    bench.run()
    assert bench.core.statistics().num_preemptions
    assert bench.report("young").num_cached_tokens == 0


def test_a_request_that_is_never_admitted_leaves_nothing_behind() -> None:
    bench = AskingBench(max_num_seqs=1)
    bench.add("a", prompt(10), max_tokens=3)
    bench.step()
    bench.add("b", prompt(10), max_tokens=3)
    bench.cancel("b")
    bench.run()
    reports = bench.core._cache_reports
    assert (reports._asked, reports._ready) == ({}, {})
    assert bench.answers["b", 0].rows[-1].cache_report is None


def test_salts_are_remembered_for_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_report, "MAX_KEYS", 2)
    monkeypatch.setattr(cache_report, "MAX_SALTS", 2)
    bench = AskingBench()
    for number in range(4):
        bench.keys[f"r{number}"] = f"key-{number}"
        bench.keys[f"s{number}"] = "key-3"
        ask(bench, f"r{number}", prompt(5), salt=b"%d" % number)
        ask(bench, f"s{number}", prompt(5), salt=b"%d" % (number + 7))
    salts = bench.core._cache_reports._salts
    assert len(salts) == 2
    assert all(len(of_key) <= 2 for of_key in salts.values())


@pytest.mark.parametrize("hash_bits", [6, 128])
def test_an_index_that_explains_finds_what_a_plain_one_finds(hash_bits: int) -> None:
    """One run of the core with each, steps compared."""
    logs = []
    for index in (PrefixIndex(b"secret", hash_bits), ExplainingIndex(b"secret", hash_bits)):
        bench = Bench(num_blocks=20)
        bench.pool.prefix_index = index
        for number in range(12):
            bench.add(f"r{number}", prompt(9 + number % 5, first=number % 4), max_tokens=3 + number % 4)
            bench.step()
        bench.run()
        bench.assert_expected()
        logs.append(bench.runner.log)
    assert logs[0] == logs[1]
