"""Cache groups: layers cut into groups, windows that let go of blocks, hits that every group can go on from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench import FULL_AND_WINDOW, Bench, prompt

from quire.engine.block_pool import BlockPool
from quire.engine.block_tables import BlockTables
from quire.engine.cache_groups import NULL_BLOCK, ONE_GROUP, CacheGroup, group_layers, has_window
from quire.engine.flight import Draft
from quire.engine.messages import Failure
from quire.engine.models.config import CacheSpec
from quire.engine.prefix_cache import PrefixCache
from quire.engine.prefix_index import BlockKey, PrefixIndex, Scope
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.sequence import Sequence, Status

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 4])
WINDOW = 6
"""Of the second group of `FULL_AND_WINDOW`."""


def specs(windows: str, kv_heads: int = 2) -> list[CacheSpec]:
    """A layer for each character: F is full attention, a digit the window."""
    return [CacheSpec(kv_heads, 16, None if window == "F" else int(window)) for window in windows]


def running(bench: Bench) -> Sequence:
    (sequence,) = bench.sequences(Status.RUNNING)
    return sequence


class TestLayers:
    @pytest.mark.parametrize(
        ("windows", "groups"),
        [
            ("FFF", [(None, (0, 1, 2))]),
            ("444", [(4, (0, 1, 2))]),
            ("F4F4", [(None, (0, 2)), (4, (1, 3))]),
            ("444F44", [(4, (0,)), (4, (1,)), (4, (2,)), (4, (4,)), (4, (5,)), (None, (3,))]),
            ("44F44F4", [(4, (0, 1)), (4, (3, 4)), (4, (6,)), (None, (2, 5))]),
            ("F49F", [(None, (0,)), (None, (3,)), (4, (1,)), (9, (2,))]),
        ],
    )
    def test_layers_of_one_window_are_cut_into_groups_of_one_size(
        self, windows: str, groups: list[tuple[int | None, tuple[int, ...]]]
    ) -> None:
        assert group_layers(specs(windows)) == tuple(CacheGroup(window, layers) for window, layers in groups)

    @pytest.mark.parametrize(("windows", "window"), [("F4", None), ("49", 9), ("44", 4)])
    def test_layers_of_different_sizes_are_one_group_with_the_longest_window(
        self, windows: str, window: int | None
    ) -> None:
        first, second = specs(windows[0]), specs(windows[1], kv_heads=1)
        assert group_layers(first + second) == (CacheGroup(window, (0, 1)),)


class TestWindow:
    @pytest.mark.parametrize("window", range(1, 12))
    def test_first_block_is_the_first_that_the_next_token_sees(self, window: int) -> None:
        group = CacheGroup(window)
        for num_tokens in range(40):
            seen = range(max(0, num_tokens - window + 1), num_tokens + 1)
            assert group.first_block(num_tokens, 4) == seen[0] // 4
        assert CacheGroup().first_block(1000, 4) == 0

    @DEPTHS
    def test_what_the_window_has_slid_past_goes_back_while_the_sequence_runs(self, depth: int) -> None:
        bench = Bench(groups=FULL_AND_WINDOW, block_size=2, num_blocks=200, depth=depth, caching=False)
        bench.add("a", prompt(20), max_tokens=40)
        most = 0
        while bench.core.has_work():
            bench.step()
            for sequence in bench.sequences(Status.RUNNING):
                full, window = sequence.block_tables
                assert NULL_BLOCK not in full
                num_null = window.count(NULL_BLOCK)
                assert window[:num_null] == [NULL_BLOCK] * num_null
                assert num_null == max(0, sequence.num_computed_tokens - WINDOW + 1) // 2
                if sequence.num_output_tokens:
                    most = max(most, len(window) - num_null)
                    assert bench.pool.num_used == 2 * len(window) - num_null
        assert most <= WINDOW // 2 + 1 + depth
        bench.assert_expected()

    def test_released_blocks_are_used_by_others_at_once(self) -> None:
        """Two long answers fit into a pool that could not hold all their blocks."""
        bench = Bench(groups=(CacheGroup(window=4),), block_size=2, num_blocks=33, caching=False, max_model_len=64)
        for number in range(6):
            bench.add(str(number), prompt(4, number), max_tokens=56)
        bench.run()
        assert bench.core.statistics().num_preemptions == 0
        assert max(len(step.work) for step in bench.runner.log) == 6, "6 x 30 blocks would be 180"
        bench.assert_expected()

    def test_the_null_block_is_nobodys(self) -> None:
        pool = BlockPool(5, 2, prefix_index=PrefixIndex(), null_block=True)
        assert (pool.num_usable, pool.num_free, pool.num_used) == (4, 4, 0)
        assert pool.allocate(5) is None
        assert sorted(pool.allocate(4) or ()) == [1, 2, 3, 4]
        pool.share([NULL_BLOCK])
        assert pool.check([[NULL_BLOCK], [1, 2, 3, 4]]) == []
        with pytest.raises(ValueError, match="published"):
            pool.publish(NULL_BLOCK, PrefixIndex().key(None, [1, 2], Scope()))
        pool.release([NULL_BLOCK])
        with pytest.raises(ValueError, match="released"):
            pool.release([NULL_BLOCK])
        pool.release([1, 2, 3, 4])
        assert pool.check([]) == []
        pool._pins[NULL_BLOCK] = pool._references[NULL_BLOCK] = 0
        assert any("I2" in line for line in pool.check([]))

    def test_an_order_with_the_null_block_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"permutation of 1\.\.3"):
            BlockPool(4, 1, order=[0, 1, 2, 3], null_block=True)

    def test_a_window_without_a_null_block_is_refused(self) -> None:
        with pytest.raises(ValueError, match="null block"):
            BlockTables(BlockPool(4, 1), FULL_AND_WINDOW)

    def test_the_largest_request_must_fit_in_every_group(self) -> None:
        config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=9)
        with pytest.raises(ValueError, match="9 tokens does not fit into 5 blocks of 4"):
            Scheduler(config, BlockPool(6, 4, null_block=True), groups=FULL_AND_WINDOW)
        Scheduler(config, BlockPool(7, 4, null_block=True), groups=FULL_AND_WINDOW)


class TestHits:
    def test_a_hit_takes_from_the_window_only_what_it_reaches(self) -> None:
        bench = Bench(groups=FULL_AND_WINDOW, block_size=2, num_blocks=200)
        for name in ("a", "b"):
            bench.add(name, [*prompt(20), 9], max_tokens=1)
            bench.step()
            if name == "a":
                bench.run()
        bench.run()
        assert bench.runner.num_computed_tokens == {"a": 21, "b": 1}
        (new,) = (work.new_block_ids for work in bench.runner.log[-1].work)
        assert [NULL_BLOCK in table for table in new] == [False, True]
        assert new[1][: (20 - WINDOW + 1) // 2] == (NULL_BLOCK,) * 7
        assert NULL_BLOCK not in new[1][7:]
        bench.assert_expected()

    def test_groups_do_not_mix(self) -> None:
        index = PrefixIndex()
        key = index.key(None, [1, 2], Scope())
        assert index.put(key, 3, group=0)
        assert index.put(key, 4, group=1)
        assert not index.put(key, 5, group=1)
        assert [index.find(key, group) for group in range(3)] == [3, 4, None]
        index.drop(key, 1)
        assert [index.find(key, group) for group in range(2)] == [3, None]

    def test_what_the_window_needs_and_lacks_shortens_the_hit(self) -> None:
        """Of the window's blocks one in the middle is forgotten: no prefix that reads it can be gone on from."""
        bench = Bench(groups=FULL_AND_WINDOW, block_size=2, num_blocks=200)
        bench.add("a", [*prompt(20), 9], max_tokens=1)
        bench.run()
        keys = keys_of(bench.pool.prefix_index, prompt(20), 2)
        lost = bench.pool.find(keys[8], 1)
        assert lost is not None
        bench.pool.forget([lost])
        bench.add("b", [*prompt(20), 9], max_tokens=1)
        bench.run()
        assert bench.answers["b", 0].rows[0].num_cached_tokens == 16
        bench.assert_expected()

    @DEPTHS
    def test_a_failed_request_leaves_nothing_to_find_behind_its_window_either(self, depth: int) -> None:
        failure = Failure("model_numerics", "not finite")
        bench = Bench(
            groups=FULL_AND_WINDOW,
            depth=depth,
            fails=lambda step_id, row, request_id: failure if request_id == "a" and step_id > 5 else None,
        )
        bench.add("a", prompt(33), max_tokens=20)
        bench.run()
        assert bench.answers["a", 0].reason == "error"
        assert bench.pool.num_cached == 0

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def test_the_longest_prefix_against_trying_every_one(self, data: st.DataObject) -> None:
        windows = data.draw(st.lists(st.sampled_from([None, 1, 2, 3, 5, 8, 30]), min_size=1, max_size=4))
        block_size, num_keys = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(0, 8))
        groups = tuple(map(CacheGroup, windows))
        index = PrefixIndex()
        pool = BlockPool(64, block_size, prefix_index=index, null_block=True)
        keys = keys_of(index, prompt(num_keys * block_size), block_size)
        present: list[dict[int, int]] = [{} for _ in groups]
        for group, blocks in enumerate(present):
            for number in data.draw(st.sets(st.integers(0, max(0, num_keys - 1)), max_size=num_keys)):
                (blocks[number],) = pool.allocate(1) or ()
                pool.publish(blocks[number], keys[number], group)
        expected: list[list[int]] = [[] for _ in groups]
        for length in range(1, num_keys + 1):
            firsts = [group.first_block(length * block_size, block_size) for group in groups]
            if all(
                number in blocks
                for blocks, first in zip(present, firsts, strict=True)
                for number in range(first, length)
            ):
                expected = [
                    [NULL_BLOCK] * first + [blocks[number] for number in range(first, length)]
                    for blocks, first in zip(present, firsts, strict=True)
                ]
        assert PrefixCache(pool, groups).find(keys) == expected


def keys_of(index: PrefixIndex | None, tokens: list[int], block_size: int) -> list[BlockKey]:
    assert index is not None
    keys: list[BlockKey] = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        keys.append(index.key(keys[-1] if keys else None, tokens[start : start + block_size], Scope()))
    return keys


class TestForks:
    @DEPTHS
    @pytest.mark.parametrize("length", [15, 16, 17])
    def test_choices_share_what_the_windows_still_reach_and_copy_a_partial_block_of_each_group(
        self, depth: int, length: int
    ) -> None:
        bench = Bench(groups=FULL_AND_WINDOW, block_size=4, num_blocks=100, depth=depth)
        bench.add("a", prompt(length), n=3, max_tokens=12)
        bench.run()
        assert sum(len(step.block_copies) for step in bench.runner.log) == (4 if length % 4 else 0)
        assert bench.runner.num_computed_tokens["a"] == length + 3 * 11
        bench.assert_expected()

    @DEPTHS
    def test_a_choice_of_a_leader_that_has_left_slides_by_itself(self, depth: int) -> None:
        bench = Bench(groups=FULL_AND_WINDOW, block_size=2, num_blocks=100, depth=depth, budget=8)
        bench.add("a", prompt(22), n=2, max_tokens=8)
        while len(bench.runner.rows) < 2:
            launched = bench.scheduler.schedule(bench.now)
            assert launched is not None
            bench.runner.forward(launched)
            if len(bench.runner.rows) == 2:
                bench.cancel("a", 0)
            bench.scheduler.apply(bench.runner.collect())
        (fork,) = bench.sequences(Status.RUNNING)
        assert fork.block_tables[1].count(NULL_BLOCK) == (22 - WINDOW + 1) // 2
        assert bench.core.check() == ()

    @DEPTHS
    @pytest.mark.parametrize("after", range(1, 9))
    def test_a_forced_preemption_at_any_step_changes_no_token(self, depth: int, after: int) -> None:
        bench = Bench(groups=FULL_AND_WINDOW, depth=depth, budget=8, num_blocks=100)
        bench.add("old", prompt(3, 1), max_tokens=12)
        bench.add("young", prompt(13, 2), n=2, max_tokens=6)
        for _ in range(after):
            bench.step()
        bench.scheduler._preempt_someone(Draft(0))
        bench.run()
        bench.assert_expected()


class TestTheBenchItself:
    """A bench that cannot fail proves nothing."""

    def test_a_block_let_go_too_early_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first_block = CacheGroup.first_block
        monkeypatch.setattr(
            CacheGroup,
            "first_block",
            lambda group, num_tokens, size: first_block(group, num_tokens + (group.window is not None), size),
        )
        bench = Bench(groups=FULL_AND_WINDOW, caching=False)
        bench.add("a", prompt(9), max_tokens=20)
        with pytest.raises(AssertionError, match="I16"):
            bench.run()

    def test_a_block_let_go_too_late_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(BlockTables, "slide", lambda tables, sequence: None)
        bench = Bench(groups=FULL_AND_WINDOW)
        bench.add("a", prompt(9), max_tokens=20)
        with pytest.raises(AssertionError, match="I10"):
            bench.run()

    def test_a_block_of_another_group_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find = PrefixIndex.find
        monkeypatch.setattr(PrefixIndex, "find", lambda index, key, group=0: find(index, key, 0))
        bench = Bench(groups=FULL_AND_WINDOW)
        for name in ("a", "b"):
            bench.add(name, prompt(17), max_tokens=4)
            if name == "a":
                bench.run()
        with pytest.raises(AssertionError, match="I16"):
            bench.run()


def test_one_group_needs_no_null_block() -> None:
    assert not has_window(ONE_GROUP)
    bench = Bench(num_blocks=16)
    bench.add("a", prompt(62), max_tokens=2)
    bench.step()
    assert sorted(running(bench).block_tables[0]) == list(range(16)), "block 0 is a block like any other"
