"""The tensors of a step against a slow way to make them, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.cache_groups import CacheGroup
from quire.engine.messages import pack_ids
from quire.engine.step import RowWork
from quire.engine.step_input import RowTable

MAX_TOKENS = 40


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], list[int], RowWork]]]:
    """A block size, and for each row its tokens, its block table and what it computes."""
    block_size = draw(st.sampled_from([1, 2, 16, 128]))
    rows = []
    for row in draw(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True)):
        tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=MAX_TOKENS))
        blocks = draw(st.lists(st.integers(0, 10**6), min_size=len(tokens), max_size=len(tokens), unique=True))
        start = draw(st.integers(0, len(tokens) - 1))
        count = draw(st.integers(1, len(tokens) - start))
        rows.append((tokens, blocks[: -(-len(tokens) // block_size)], RowWork(row, start, count, (), ())))
    return block_size, rows


@settings(max_examples=40, deadline=None)
@given(steps())
def test_equals_the_slow_way(step: tuple[int, list[tuple[list[int], list[int], RowWork]]]) -> None:
    block_size, rows = step
    table = RowTable(8, MAX_TOKENS, block_size)
    for tokens, blocks, work in rows:
        half = len(tokens) // 2
        table.create(work.row, pack_ids(tokens[:half]))
        for token in tokens[half:]:
            table.append_token(work.row, token)
        table.append_blocks(work.row, [blocks[:1]])
        table.append_blocks(work.row, [blocks[1:]])
        table.check(work)
    made = table.step_input([work for _, _, work in rows])
    input_ids, positions, slots, starts, seq_lens = [], [], [], [0], []
    for tokens, blocks, work in rows:
        for position in range(work.start, work.start + work.num_tokens):
            input_ids.append(tokens[position])
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
        starts.append(len(input_ids))
        seq_lens.append(work.start + work.num_tokens)
    (plan,) = made.plans
    assert made.input_ids.tolist() == input_ids
    assert made.positions.tolist() == positions
    assert plan.slot_mapping.tolist() == slots
    assert plan.query_start_loc.tolist() == list(plan.query_start_list) == starts
    assert plan.seq_lens.tolist() == list(plan.seq_lens_list) == seq_lens
    for (_, blocks, _), seq_len, row in zip(rows, seq_lens, plan.block_tables.tolist(), strict=True):
        used = -(-seq_len // block_size)
        assert row[:used] == blocks[:used]


@settings(max_examples=40, deadline=None)
@given(steps(), st.lists(st.sampled_from([None, 1, 3, 16, 100]), min_size=1, max_size=3))
def test_each_group_has_its_table_and_reads_null_behind_its_window(
    step: tuple[int, list[tuple[list[int], list[int], RowWork]]], windows: list[int | None]
) -> None:
    block_size, rows = step
    table = RowTable(8, MAX_TOKENS, block_size, [CacheGroup(window) for window in windows])
    for tokens, blocks, work in rows:
        table.create(work.row, pack_ids(tokens))
        table.append_blocks(work.row, [[block_id + group for block_id in blocks] for group in range(len(windows))])
    plans = table.step_input([work for _, _, work in rows]).plans
    for group, (window, plan) in enumerate(zip(windows, plans, strict=True)):
        slots = []
        for (_, blocks, work), row in zip(rows, plan.block_tables.tolist(), strict=True):
            end = work.start + work.num_tokens
            first = 0 if window is None else max(0, work.start - window + 1)
            expected = [blocks[i] + group if (i + 1) * block_size > first else 0 for i in range(-(-end // block_size))]
            assert row[: len(expected)] == expected
            slots += [(blocks[p // block_size] + group) * block_size + p % block_size for p in range(work.start, end)]
        assert plan.slot_mapping.tolist() == slots


def test_block_ids_for_another_number_of_groups() -> None:
    table = RowTable(1, 8, 1, [CacheGroup(), CacheGroup(3)])
    for block_ids in [[(1,)], [(1,), (2,), (3,)], [(1, 2), (3,)]]:
        with pytest.raises(ValueError, match=r"cache groups|inhomogeneous|broadcast"):
            table.append_blocks(0, block_ids)


def test_slots_beyond_int32() -> None:
    table = RowTable(1, 4, 256)
    table.create(0, pack_ids([7]))
    table.append_blocks(0, [(2**31 - 1,)])
    assert table.step_input([RowWork(0, 0, 1, (), ())]).plans[0].slot_mapping.tolist() == [(2**31 - 1) * 256]


def test_tensors_are_copies() -> None:
    table = RowTable(1, 4, 1)
    table.create(0, pack_ids([7, 8]))
    table.append_blocks(0, [(3, 5)])
    made = table.step_input([RowWork(0, 0, 2, (), ())])
    table.create(0, pack_ids([1, 1]))
    table.append_blocks(0, [(9, 9)])
    assert made.input_ids.tolist() == [7, 8]
    assert made.plans[0].block_tables.tolist() == [[3, 5]]


def test_the_end_of_a_row() -> None:
    table = RowTable(1, 2, 1)
    table.create(0, pack_ids([7]))
    for token in (8, 9):
        table.append_token(0, token)
    assert np.array_equal(table.tokens(0), [7, 8])
    with pytest.raises(ValueError, match="3 tokens"):
        table.create(0, pack_ids([1, 2, 3]))


@pytest.mark.parametrize("work", [RowWork(0, 0, 3, (), ()), RowWork(0, 2, 1, (), ()), RowWork(0, 0, 0, (), ())])
def test_work_that_its_row_does_not_have(work: RowWork) -> None:
    table = RowTable(1, 8, 1)
    table.create(0, pack_ids([7, 8]))
    table.append_blocks(0, [(1, 2)])
    with pytest.raises(ValueError, match="tokens"):
        table.check(work)
    table.create(0, pack_ids([7, 8]))
    with pytest.raises(ValueError, match="do not fit"):
        table.check(RowWork(0, 0, 2, (), ()))
