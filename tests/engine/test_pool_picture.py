"""Pictures of the block pool: frames add up to what is there, tell what was lost, and come when they are due."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench import Bench, prompt

from quire.engine.cache_groups import ONE_GROUP, CacheGroup
from quire.engine.pool_frame import PoolFold, PoolFrame
from quire.engine.pool_picture import INTERVAL_SECONDS, KEEP_ALIVE_SECONDS, MAX_WAITING, PoolPictures, PoolWatch


def pictures(bench: Bench, started_at: float = 0.0) -> PoolPictures:
    return bench.core.pictures(started_at)


def everything(bench: Bench) -> PoolFrame:
    """The full frame of this moment."""
    frame = pictures(bench).take(bench.now)
    assert frame is not None
    assert frame.kind == "full"
    return frame


def comparable(frame: PoolFrame) -> PoolFrame:
    """Without what two pictures of one moment may say differently: the order of blocks, and what came before."""
    return msgspec.structs.replace(frame, at=0.0, evicted=(), blocks=tuple(sorted(frame.blocks)))


WINDOWED = (CacheGroup(), CacheGroup(window=6))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("look")),
        st.tuples(st.just("restart")),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    events=EVENTS,
    num_blocks=st.sampled_from([26, 40, 600]),
    depth=st.sampled_from([1, 2]),
    caching=st.booleans(),
    groups=st.sampled_from([ONE_GROUP, WINDOWED]),
)
def test_frames_add_up_to_what_is_there(
    events: list[tuple[Any, ...]], num_blocks: int, depth: int, caching: bool, groups: tuple[CacheGroup, ...]
) -> None:
    """Full, then changes, replayed: the full picture of the end, however the frames were folded on the way."""
    bench = Bench(num_blocks=num_blocks, block_size=4, max_model_len=48, depth=depth, caching=caching, groups=groups)
    taken = pictures(bench)
    whole, recent = PoolFold(first := taken.take(0.0)), None  # type: ignore[arg-type]
    assert first is not None
    cached: dict[int, int] = {}
    count = 0
    for event in [*events, ("look",)]:
        match event:
            case ("add", tokens, n):
                bench.add(str(count), tokens, n=n, max_tokens=12, stop_token_ids=(1, 2, 3))
                count += 1
            case ("cancel", number) if number < count:
                bench.cancel(str(number))
            case ("step", number):
                for _ in range(number):
                    bench.step()
            case ("restart",):
                taken.restart()
            case ("look",):
                frame = taken.take(bench.now)
                if frame is not None:
                    whole.add(frame)
                    recent = PoolFold(frame) if recent is None else recent
                    recent.add(frame)
                    assert frame.kind == "full" or lost_since(bench, cached) == set(frame.evicted)
                cached = generations(bench)
    shown = whole.frame()
    assert shown.kind == "full"
    assert comparable(shown) == comparable(everything(bench))
    assert {block[0]: block for block in shown.blocks} == expected_blocks(bench)
    if recent is not None:
        rest = PoolFold(first)
        rest.add(recent.frame())
        assert comparable(rest.frame()) == comparable(everything(bench))


def expected_blocks(bench: Bench) -> dict[int, tuple[int, int, int]]:
    """From the pool's own answers, one by one."""
    pool = bench.pool
    block_ids = range(pool.has_null_block, pool.num_blocks)
    entries = {i: (i, pool.references(i), int(pool.is_cached(i))) for i in block_ids}
    return {i: entry for i, entry in entries.items() if entry[1:] != (0, 0)}


def generations(bench: Bench) -> dict[int, int]:
    """Of every cached block, how often it had been handed out."""
    pool = bench.pool
    return {i: pool.generation(i) for i in range(pool.num_blocks) if pool.is_cached(i)}


def lost_since(bench: Bench, cached: dict[int, int]) -> set[int]:
    """Blocks that were cached then, and have been handed out again."""
    return {i for i, generation in cached.items() if bench.pool.generation(i) != generation}


def test_a_sequence_is_told_in_full() -> None:
    bench = Bench(block_size=4, shuffle_seed=3)
    bench.add("0123456789abcdef", prompt(10), max_tokens=7, n=2)
    bench.step()
    bench.step()
    frame = everything(bench)
    first, second = bench.scheduler.roster.running
    assert [sequence.id for sequence in frame.sequences] == ["01234567/0", "01234567/1"]
    told = frame.sequences[0]
    assert (told.status, told.prompt, told.tokens, told.computed, told.max_tokens) == ("running", 10, 12, 11, 7)
    (table,), (other,) = told.tables, frame.sequences[1].tables
    assert (table.window, table.first, len(table.blocks)) == (None, 0, 3)
    shared = set(table.blocks) & set(other.blocks)
    assert len(shared) == 2
    assert {block[0]: block[1] for block in frame.blocks if block[0] in shared} == dict.fromkeys(shared, 2)
    assert (frame.num_running, frame.num_waiting, frame.steps) == (2, 0, 2)
    assert (frame.num_blocks, frame.block_size) == (64, 4)
    assert first.choice == 0
    assert second.choice == 1


def test_the_null_block_is_no_block() -> None:
    bench = Bench(block_size=4, groups=WINDOWED)
    bench.add("a", prompt(30), max_tokens=7)
    bench.step()
    bench.step()
    frame = everything(bench)
    (sequence,) = bench.scheduler.roster.running
    assert 0 in sequence.block_tables[1]
    full, window = frame.sequences[0].tables
    assert (full.window, full.first, list(full.blocks)) == (None, 0, sequence.block_tables[0])
    assert (window.window, window.first) == (6, sequence.block_tables[1].count(0))
    assert [0] * window.first + list(window.blocks) == sequence.block_tables[1]
    assert 0 not in window.blocks
    assert 0 not in {block[0] for block in frame.blocks}


def test_cached_tokens_of_a_second_request_are_told() -> None:
    bench = Bench(block_size=4)
    bench.add("a", prompt(10), max_tokens=2)
    bench.run()
    bench.add("b", prompt(10), max_tokens=20)
    bench.step()
    (told,) = everything(bench).sequences
    assert told.cached == 8


def test_waiting_sequences_have_no_blocks_and_are_not_all_listed() -> None:
    bench = Bench(max_num_seqs=1)
    for number in range(MAX_WAITING + 10):
        bench.add(str(number), prompt(3), max_tokens=5)
    bench.step()
    frame = everything(bench)
    waiting = [sequence for sequence in frame.sequences if sequence.status == "waiting"]
    assert len(waiting) == MAX_WAITING
    assert {sequence.tables for sequence in waiting} == {()}
    assert frame.num_waiting == MAX_WAITING + 9


def test_nothing_new_is_no_frame_until_a_sign_of_life_is_due() -> None:
    bench = Bench()
    taken = pictures(bench, started_at=-5.0)
    assert (first := taken.take(0.0)) is not None
    assert first.at == 5.0
    assert taken.take(KEEP_ALIVE_SECONDS - 0.1) is None
    alive = taken.take(KEEP_ALIVE_SECONDS)
    assert alive is not None
    assert (alive.kind, alive.blocks) == ("change", ())
    assert taken.take(KEEP_ALIVE_SECONDS + 1) is None


def test_a_change_of_many_blocks_names_only_those() -> None:
    bench = Bench(num_blocks=2000, block_size=4, max_model_len=400, budget=400, shuffle_seed=None)
    taken = pictures(bench)
    taken.take(0.0)
    bench.add("a", prompt(358), max_tokens=2)
    bench.step()
    frame = taken.take(1.0)
    assert frame is not None
    assert sorted(block[0] for block in frame.blocks) == sorted(frame.sequences[0].tables[0].blocks)
    bench.run()
    frame = taken.take(2.0)
    assert frame is not None
    assert sorted(set(frame.blocks)) == [(i, 0, int(i < 89)) for i in range(90)], "the last one caches nothing"


class Clock:
    """Time that passes when a test says so; each look costs `cost` seconds."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost = 100.0, cost

    def __call__(self) -> float:
        self.now += self.cost
        return self.now


@pytest.fixture
def bench() -> Bench:
    return Bench(max_model_len=64)


def test_a_watch_begins_with_a_full_frame_and_ends_when_it_is_not_renewed(bench: Bench) -> None:
    clock = Clock()
    watch = PoolWatch(pictures(bench))
    assert not watch.active
    watch.renew(6.0, clock.now)
    assert watch.active
    assert watch.look(clock).kind == "full"  # type: ignore[union-attr]
    bench.add("a", prompt(3), max_tokens=50)
    clock.now += 5.0
    watch.renew(6.0, clock.now)
    bench.step()
    assert watch.look(clock).kind == "change"  # type: ignore[union-attr]
    clock.now += 6.0
    bench.step()
    assert watch.look(clock) is None
    assert not watch.active
    watch.renew(6.0, clock.now)
    assert watch.look(clock).kind == "full"  # type: ignore[union-attr]
    watch.renew(0.0, clock.now)
    assert not watch.active


@pytest.mark.parametrize(("cost", "pause"), [(0.0, INTERVAL_SECONDS), (0.02, 0.4)])
def test_frames_are_rare_and_rarer_where_they_are_dear(bench: Bench, cost: float, pause: float) -> None:
    clock = Clock(cost)
    watch = PoolWatch(pictures(bench))
    watch.renew(1000.0, clock.now)
    bench.add("a", prompt(3), max_tokens=60)
    begin = clock.now + cost
    assert watch.look(clock) is not None
    times = []
    while len(times) < 3:
        clock.now += 0.01
        bench.step()
        if watch.look(clock) is not None:
            times.append(clock.now)
    assert times[0] - begin >= pause
    assert times[0] - begin <= pause + 3 * cost + 0.02


def test_what_begins_after_a_silence_is_shown_at_once(bench: Bench) -> None:
    clock = Clock()
    watch = PoolWatch(pictures(bench))
    watch.renew(1000.0, clock.now)
    assert watch.look(clock) is not None
    clock.now += INTERVAL_SECONDS
    assert watch.look(clock) is None
    bench.add("a", prompt(3), max_tokens=60)
    assert watch.look(clock) is not None
