"""The ledger's entries add up to the whole, whatever happens, and name who took the time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.asking import HOST, TOKEN, AskingBench
from support.bench import RareFaults, prompt

from quire.engine.messages import Timings

ENTRIES = ("queue", "prefill", "others_prefill", "decode", "preempted", "sampling")


def assert_whole(timings: Timings) -> None:
    """Every entry is a duration, and together they are all the time there was."""
    entries = [getattr(timings, name) for name in ENTRIES]
    assert min(entries) >= 0
    assert sum(entries) == round(timings.ended * 1e9) - round(timings.began * 1e9)


def seconds(timings: Timings) -> dict[str, float]:
    """The entries that are not empty."""
    return {name: getattr(timings, name) / 1e9 for name in ENTRIES if getattr(timings, name)}


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps before it comes
        st.integers(1, 30),  # prompt
        st.integers(1, 12),  # output
        st.integers(1, 3),  # n
        st.integers(0, 40),  # ms that it lay in the socket
        st.sampled_from(["stays", "stops", "leaves", "silent"]),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(
    requests=REQUESTS,
    depth=st.sampled_from([1, 2, 4]),
    num_blocks=st.sampled_from([12, 16, 40]),
    budget=st.sampled_from([3, 8, 64]),
    seed=st.integers(0, 3),
)
def test_the_entries_add_up_to_the_whole(
    requests: list[tuple[int, int, int, int, int, str]], depth: int, num_blocks: int, budget: int, seed: int
) -> None:
    faults = RareFaults(seed, {"scheduler.preempt": 0.1, "scheduler.budget": 0.1, "core.apply_early": 0.2})
    bench = AskingBench(
        depth=depth, num_blocks=num_blocks, budget=budget, max_num_seqs=4, max_model_len=44, faults=faults
    )
    bench.now = 10.0
    for number, (steps, length, max_tokens, n, late, kind) in enumerate(requests):
        for _ in range(steps):
            bench.step()
        name = f"request-{number}"
        bench.began[name] = bench.now - late / 1000
        if kind == "silent":
            bench.silent.add(name)
        stop = ("never found",) if kind == "stops" else ()
        bench.add(name, prompt(length, first=number % 3), max_tokens=max_tokens, n=n, stop=stop)
        if kind == "leaves":
            bench.step()
            bench.cancel(name)
    bench.run()
    for (name, _), answer in bench.answers.items():
        signed = [row.timings for row in answer.rows if row.timings is not None]
        if name in bench.silent:
            assert not signed
            continue
        assert answer.rows[-1].timings is not None
        every = requests[int(name.rpartition("-")[2])][5] == "stops"
        assert len(signed) == (len(answer.rows) if every else 1)
        for timings in signed:
            assert_whole(timings)
            assert timings.began == pytest.approx(bench.began[name])
            assert timings.ended <= bench.now
    assert not bench.core._ledger._accounts, "an account stays open"
    assert not bench.core._ledger._neighbours
    assert bench.core._ledger._work is None


def test_a_request_alone_computes_its_prompt_and_then_decodes() -> None:
    bench = AskingBench()
    bench.began["a"] = -0.5
    bench.add("a", prompt(10), max_tokens=5)
    bench.run()
    assert seconds(bench.timings("a")) == pytest.approx(
        {"queue": 0.5, "prefill": 10 * TOKEN, "decode": 4 * TOKEN, "sampling": 5 * HOST + 4 * 0.01}
    ), "10 ms lie between two steps of a bench"
    assert bench.timings("a").delayed_by == ()


def test_a_noisy_neighbour_is_named_by_the_request_that_it_delays() -> None:
    bench = AskingBench(budget=32)
    bench.silent = {"noisy"}
    bench.add("quiet", prompt(3), max_tokens=8)
    bench.step()
    bench.add("noisy", prompt(40, first=2), max_tokens=2)
    bench.run()
    timings = bench.timings("quiet")
    assert_whole(timings)
    assert seconds(timings)["others_prefill"] == pytest.approx(40 * TOKEN, rel=1e-6)
    assert seconds(timings)["decode"] == pytest.approx((7 + 1) * TOKEN), "its own tokens, and one decoded beside it"
    (delay,) = timings.delayed_by
    assert (delay.request_id, delay.nanoseconds) == ("noisy", pytest.approx(40 * TOKEN * 1e9, rel=1e-6))


def test_a_request_that_came_in_the_middle_of_a_step_names_whose_step_it_was() -> None:
    bench = AskingBench()
    bench.silent = {"noisy"}
    bench.add("noisy", prompt(40), max_tokens=1)
    bench.step()
    ended = bench.now - 0.01 - HOST
    bench.began["late"] = ended - 20 * TOKEN
    bench.add("late", prompt(3, first=2), max_tokens=2)
    bench.run()
    timings = bench.timings("late")
    assert_whole(timings)
    assert seconds(timings)["queue"] == pytest.approx(20 * TOKEN + HOST + 0.01)
    (delay,) = timings.delayed_by
    assert (delay.request_id, delay.nanoseconds) == ("noisy", pytest.approx(20 * TOKEN * 1e9, rel=1e-6))


def test_a_neighbour_with_another_key_has_no_name() -> None:
    bench = AskingBench()
    bench.keys = {"noisy": "another", "mate": "mine", "quiet": "mine"}
    bench.add("quiet", prompt(3), max_tokens=8)
    bench.step()
    bench.add("noisy", prompt(40, first=2), max_tokens=1)
    bench.add("mate", prompt(9, first=3), max_tokens=1)
    bench.run()
    named = [(delay.request_id, round(delay.nanoseconds / 1e6)) for delay in bench.timings("quiet").delayed_by]
    assert named == [(None, 40), ("mate", 9)]


def test_waiting_for_lost_blocks_and_computing_them_again_is_preempted_time() -> None:
    bench = AskingBench(num_blocks=9, max_model_len=32, caching=False)
    bench.add("old", prompt(10), max_tokens=20)
    bench.add("young", prompt(10, first=2), max_tokens=12)
    bench.run()
    assert bench.core.statistics().num_preemptions
    timings = bench.timings("young")
    assert_whole(timings)
    assert timings.preempted > 10 * TOKEN * 1e9
    assert timings.prefill == pytest.approx(10 * TOKEN * 1e9, rel=1e-6), "the prompt is its own work once"
    assert bench.timings("old").preempted == 0


def test_choices_that_fork_were_served_by_their_leader() -> None:
    bench = AskingBench(budget=4)
    bench.add("a", prompt(10), max_tokens=3, n=3)
    bench.run()
    for choice in range(3):
        assert bench.timings("a", choice).prefill == 10 * TOKEN * 1e9
        assert bench.timings("a", choice).others_prefill == 0


def test_nothing_is_kept_while_nobody_asks() -> None:
    bench = AskingBench()
    bench.silent = {"a", "b"}
    bench.add("a", prompt(10), max_tokens=4)
    bench.add("b", prompt(10), max_tokens=4)
    bench.run()
    ledger = bench.core._ledger
    assert (ledger._accounts, ledger._neighbours, ledger._unbooked, ledger._work) == ({}, {}, [], None)
    assert all(row.timings is None for answer in bench.answers.values() for row in answer.rows)
