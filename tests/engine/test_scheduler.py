"""The scheduler, case by case; every step of every test is checked by the bench (tests/support/bench.py)."""

from __future__ import annotations

from itertools import permutations

import pytest
from support.bench import Bench, prompt

from quire.engine.block_pool import BlockPool
from quire.engine.flight import Draft
from quire.engine.messages import Failure
from quire.engine.queues import MAX_PASSES, MAX_PREEMPTIONS
from quire.engine.scheduler import LEASE_SECONDS, Scheduler, SchedulerConfig
from quire.engine.sequence import Status
from quire.engine.step import Sampled, SampledRow, Step
from quire.simulator.fake_runner import FakeRunner, Row

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 4])


class TestBudget:
    def test_a_long_prompt_is_computed_in_chunks_of_the_budget(self) -> None:
        bench = Bench(budget=10)
        bench.add("a", prompt(25), max_tokens=2)
        bench.run()
        assert [step.num_tokens for step in bench.runner.log] == [10, 10, 5, 1]
        bench.assert_expected()

    def test_the_threshold_bounds_a_chunk_and_leaves_the_budget_to_others(self) -> None:
        bench = Bench(budget=20, threshold=6)
        bench.add("a", prompt(18, 1), max_tokens=1)
        bench.add("b", prompt(5, 2), max_tokens=1)
        bench.step()
        assert [work.num_tokens for work in bench.runner.log[0].work] == [6, 5]

    def test_decodes_come_first(self) -> None:
        bench = Bench(budget=4)
        bench.add("a", prompt(2, 1), max_tokens=20)
        bench.add("b", prompt(2, 2), max_tokens=20)
        bench.step()
        bench.add("c", prompt(30, 3), max_tokens=20)
        bench.step()
        assert [work.num_tokens for work in bench.runner.log[-1].work] == [1, 1, 2]
        bench.run()
        bench.assert_expected()

    def test_a_long_prompt_takes_at_most_half_while_others_wait(self) -> None:
        bench = Bench(budget=16, max_model_len=128)
        bench.add("long", prompt(100, 1), max_tokens=1)
        bench.step()
        assert bench.runner.log[-1].work[0].num_tokens == 16, "alone it may take all"
        bench.add("short", prompt(6, 2), max_tokens=1)
        rows = bench.step()
        assert [work.num_tokens for work in bench.runner.log[-1].work] == [10, 6], "what the short one leaves is spent"
        assert [row.request_id for row in rows] == ["short"]

    def test_at_most_four_prompts_are_under_way(self) -> None:
        bench = Bench(budget=64, num_blocks=256, max_model_len=128)
        for number in range(8):
            bench.add(str(number), prompt(100, number), max_tokens=1)
        bench.step()
        assert len(bench.runner.log[-1].work) == 4
        assert bench.runner.log[-1].num_tokens == 64
        bench.run()
        bench.assert_expected()

    def test_a_short_prompt_enters_beside_four_long_ones(self) -> None:
        bench = Bench(budget=64, num_blocks=256, max_model_len=128)
        for number in range(4):
            bench.add(str(number), prompt(120, number), max_tokens=1)
        bench.step()
        bench.add("short", prompt(2, 9), max_tokens=1)
        assert [row.request_id for row in bench.step()] == ["short"]

    def test_no_more_rows_than_there_are(self) -> None:
        bench = Bench(max_num_seqs=2)
        for number in range(5):
            bench.add(str(number), prompt(3, number), max_tokens=4)
        bench.run()
        assert max(len(step.work) for step in bench.runner.log) == 2
        bench.assert_expected()


class TestPreemption:
    @DEPTHS
    @pytest.mark.parametrize("block_size", [1, 4, 16])
    def test_a_pool_little_larger_than_the_largest_request_makes_progress(self, depth: int, block_size: int) -> None:
        bench = Bench(num_blocks=-(-64 * 105 // 100 // block_size), block_size=block_size, depth=depth, budget=32)
        for number in range(12):
            bench.add(str(number), prompt(4 + number, number), max_tokens=50 - number)
        bench.run()
        assert bench.core.statistics().num_preemptions > 0
        bench.assert_expected()

    def test_nobody_is_preempted_more_than_three_times(self) -> None:
        bench = Bench(num_blocks=17, depth=2)
        most = 0
        for number in range(30):
            bench.add(str(number), prompt(4, number), max_tokens=40)
        while bench.core.has_work():
            bench.step()
            most = max([most, *(s.num_preemptions for s in bench.sequences(*Status))])
        assert most == MAX_PREEMPTIONS
        bench.assert_expected()

    @DEPTHS
    @pytest.mark.parametrize("after", range(1, 12))
    def test_a_forced_preemption_at_any_step_changes_no_token(self, depth: int, after: int) -> None:
        bench = Bench(depth=depth, budget=8)
        bench.add("old", prompt(3, 1), max_tokens=12)
        bench.add("young", prompt(13, 2), n=2, max_tokens=6, logprobs=0)
        for _ in range(after):
            bench.step()
        bench.scheduler._preempt_someone(Draft(0))
        bench.run()
        bench.assert_expected()
        for choice in range(2):
            rows = bench.answers["young", choice].rows
            assert sum(len(row.logprobs or ()) for row in rows) == 6

    def test_the_same_prompt_after_a_preemption_hits_its_own_blocks(self) -> None:
        bench = Bench()
        bench.add("old", prompt(3, 1), max_tokens=30)
        bench.add("young", prompt(21, 2), max_tokens=4)
        bench.step()
        bench.step()
        bench.scheduler._preempt_someone(Draft(0))
        bench.run()
        assert bench.runner.num_computed_tokens["young"] == 21 + 3 + 2, "one partial block again"
        assert bench.answers["young", 0].rows[0].num_cached_tokens == 0


class TestQueue:
    def test_the_head_is_passed_a_bounded_number_of_times(self) -> None:
        bench = Bench(num_blocks=20, max_num_seqs=16, budget=256, max_model_len=80)
        bench.add("running", prompt(20, 1), max_tokens=45)
        bench.step()
        bench.add("large", prompt(75, 2), max_tokens=1)
        for number in range(12):
            bench.add(str(number), prompt(2, number), max_tokens=1)
            bench.step()
        assert sum(bench.answers[str(number), 0].reason is not None for number in range(12)) == MAX_PASSES
        bench.run()
        bench.assert_expected()

    def test_the_head_is_passed_for_a_bounded_time(self) -> None:
        bench = Bench(num_blocks=20, budget=256, max_model_len=80)
        bench.add("running", prompt(20, 1), max_tokens=45)
        bench.step()
        bench.add("large", prompt(75, 2), max_tokens=1)
        bench.step()
        bench.now += 2
        bench.add("small", prompt(2, 3), max_tokens=1)
        assert {row.request_id for row in bench.step()} == {"running"}

    def test_admission_leaves_a_block_to_everyone_who_runs(self) -> None:
        bench = Bench(num_blocks=16)
        for number in range(2):
            bench.add(str(number), prompt(20, number), max_tokens=30)
        bench.step()
        assert bench.pool.num_free == 6
        bench.add("five", prompt(17, 5), max_tokens=1)
        bench.add("four", prompt(16, 4), max_tokens=1)
        assert {row.request_id for row in bench.step()} == {"0", "1"}, "both would leave too little after two more"
        bench.add("two", prompt(5, 2), max_tokens=1)
        assert "two" in {row.request_id for row in bench.step()}

    def test_cached_blocks_that_a_hit_takes_from_the_free_list_count_against_the_watermark(self) -> None:
        bench = Bench(num_blocks=16)
        bench.add("a", prompt(40, 1), max_tokens=1)
        bench.run()
        bench.add("running", prompt(5, 2), max_tokens=30)
        bench.step()
        assert (bench.pool.num_free, bench.pool.num_cached) == (14, 11)
        bench.add("all", [*prompt(40, 1), *prompt(14, 3)], max_tokens=1)
        bench.add("all but one", [*prompt(40, 1), *prompt(10, 4)], max_tokens=1)
        assert {row.request_id for row in bench.step()} == {"running", "all but one"}

    def test_priority_goes_before_arrival(self) -> None:
        bench = Bench(max_num_seqs=1, policy="priority")
        for name, priority in (("c", 5), ("a", -1), ("b", 0)):
            bench.add(name, prompt(4), priority=priority, max_tokens=2)
        ends: list[str] = []
        while bench.core.has_work():
            ends += [row.request_id for row in bench.step() if row.finish_reason]
        assert ends == ["a", "b", "c"]

    def test_priority_decides_who_is_preempted(self) -> None:
        bench = Bench(num_blocks=16, policy="priority")
        bench.add("low", prompt(20, 1), priority=1, max_tokens=30)
        bench.add("high", prompt(20, 2), priority=0, max_tokens=30)
        while not bench.core.statistics().num_preemptions:
            bench.step()
        assert [s.group.request_id for s in bench.sequences(Status.PREEMPTED)] == ["low"]
        bench.run()
        bench.assert_expected()

    def test_the_victim_is_the_youngest_that_may_go(self) -> None:
        bench = Bench()
        for number in range(3):
            bench.add(str(number), prompt(5, number), max_tokens=30)
        bench.step()
        queue, running = bench.scheduler.roster.queue, bench.scheduler.roster.running
        assert queue.victim(running) is running[2]
        running[2].num_preemptions = MAX_PREEMPTIONS
        assert queue.victim(running) is running[1]
        running[1].num_preemptions = MAX_PREEMPTIONS
        assert queue.victim(running) is None

    def test_a_policy_that_is_not_built_is_refused(self) -> None:
        with pytest.raises(ValueError, match="found 'lottery'"):
            Bench(policy="lottery")

    def test_the_time_in_the_queue_is_told_once(self) -> None:
        bench = Bench(max_num_seqs=1)
        bench.add("a", prompt(4), max_tokens=3)
        bench.add("b", prompt(4), max_tokens=2)
        bench.run()
        assert [row.queue_seconds for row in bench.answers["b", 0].rows] == [pytest.approx(0.03), 0.0]


class TestEnds:
    def test_a_stop_token_ends_only_after_min_tokens(self) -> None:
        stops = tuple(range(25))
        bench = Bench()
        bench.add("a", prompt(4), max_tokens=40, stop_token_ids=stops)
        bench.add("b", prompt(4), max_tokens=40, stop_token_ids=stops, min_tokens=9)
        bench.run()
        bench.assert_expected()
        assert bench.answers["a", 0].reason == "stop"
        assert len(bench.answers["b", 0].token_ids) > 9

    def test_a_stop_token_among_the_first_min_tokens_is_a_token_like_any_other(self) -> None:
        class Stubborn(FakeRunner):
            def _sample_row(
                self, step: Step, reader: Row, row_number: int, end: int, contents: list[int]
            ) -> SampledRow:
                self.rows[row_number].token_ids.append(1)
                return SampledRow(row_number, (1,))

        bench = Bench(runner=Stubborn)
        bench.add("a", prompt(4), max_tokens=9, stop_token_ids=(1,), min_tokens=3)
        bench.expected["a", 0] = ([1, 1, 1, 1], "stop")
        bench.run()
        bench.assert_expected()

    @DEPTHS
    @pytest.mark.parametrize("length", [61, 62, 63])
    def test_the_context_ends_a_sequence(self, depth: int, length: int) -> None:
        bench = Bench(max_model_len=64, num_blocks=None, depth=depth)
        bench.add("a", prompt(length), max_tokens=40)
        bench.run()
        assert len(bench.answers["a", 0].token_ids) == 64 - length
        bench.assert_expected()

    @pytest.mark.parametrize(("length", "max_tokens"), [(0, 1), (64, 1), (65, 0)])
    def test_a_prompt_that_does_not_fit_is_refused(self, length: int, max_tokens: int) -> None:
        bench = Bench(max_model_len=64)
        bench.add("a", prompt(length), max_tokens=max_tokens, n=2)
        bench.run()
        for choice in range(2):
            assert bench.answers["a", choice].reason == "error"
            failure = bench.answers["a", choice].rows[0].failure
            assert failure is not None
            assert (failure.code, failure.status) == ("context_length_exceeded", 400)
        assert bench.runner.log == []

    def test_a_prompt_as_long_as_the_context_is_computed_when_nothing_is_sampled(self) -> None:
        bench = Bench(max_model_len=64, budget=50)
        bench.add("a", prompt(64), max_tokens=0, prompt_logprobs=0)
        bench.run()
        (row,) = bench.answers["a", 0].rows
        assert (row.token_ids, row.finish_reason) == (b"", "length")
        assert len(row.prompt_logprobs or ()) == 64

    @pytest.mark.parametrize(
        ("reason", "end"),
        [("client_gone", "aborted"), ("drain", "aborted"), ("stop_string", "stop"), ("deadline", "timeout")],
    )
    def test_the_reason_of_a_cancel_names_the_end(self, reason: str, end: str) -> None:
        bench = Bench()
        bench.add("a", prompt(4), max_tokens=9)
        bench.step()
        bench.cancel("a", None, reason)  # type: ignore[arg-type]
        bench.run()
        assert bench.answers["a", 0].reason == end

    @DEPTHS
    def test_add_finish_and_cancel_in_all_orders(self, depth: int) -> None:
        """F19: cancels before the request, in flight, twice, after the end, and of ids that nobody knows."""
        for order in sorted(set(permutations(["cancel", "cancel", "add", "step", "step", "cancel unknown"]))):
            bench = Bench(depth=depth)
            for event in order:
                if event == "add":
                    bench.add("a", prompt(4), max_tokens=2, n=2)
                elif event == "step":
                    bench.step()
                else:
                    bench.cancel("a" if event == "cancel" else "b")
            bench.run()
            assert bench.answers["a", 0].reason in ("aborted", "length")

    def test_a_repeated_add_is_ignored(self) -> None:
        bench = Bench()
        bench.add("a", prompt(4), max_tokens=3)
        bench.step()
        bench.core.add(bench.adds["a"], bench.now)
        bench.run()
        bench.assert_expected()

    def test_requests_that_nobody_names_end_after_the_lease(self) -> None:
        bench = Bench(max_model_len=64)
        for name in ("kept", "lost", "back"):
            bench.add(name, prompt(4), max_tokens=60)
        bench.live("kept")
        bench.now += LEASE_SECONDS - 1
        bench.live("kept", "back")
        bench.step()
        assert bench.answers["lost", 0].reason is None
        bench.now += 1
        bench.live("kept")
        bench.step()
        assert bench.answers["lost", 0].reason == "aborted"
        bench.run()
        assert bench.answers["kept", 0].reason == bench.answers["back", 0].reason == "length"

    @DEPTHS
    def test_a_failed_row_ends_its_request_and_its_blocks_cannot_be_found(self, depth: int) -> None:
        failure = Failure("model_numerics", "not finite")
        bench = Bench(
            depth=depth, fails=lambda step_id, row, request_id: failure if request_id == "a" and step_id > 3 else None
        )
        bench.add("a", prompt(17, 1), max_tokens=9)
        bench.add("b", prompt(17, 2), max_tokens=9)
        bench.run()
        assert bench.answers["a", 0].rows[-1].failure == failure
        assert bench.answers["b", 0].token_ids == bench.expected["b", 0][0]
        computed = dict(bench.runner.num_computed_tokens)
        for name, first in (("a2", 1), ("b2", 2)):
            bench.add(name, prompt(17, first), max_tokens=1)
        bench.run()
        assert computed.keys() == {"a", "b"}
        assert bench.runner.num_computed_tokens["a2"] == 17
        assert bench.runner.num_computed_tokens["b2"] == 1


class TestTheBenchItself:
    """A bench that cannot fail proves nothing."""

    def test_a_wrong_block_id_is_caught(self) -> None:
        bench = Bench(table=lambda row, block_ids: block_ids if row == 0 else (stolen, *block_ids[1:]))
        bench.add("a", prompt(9, 1), max_tokens=4)
        bench.step()
        stolen = bench.sequences(Status.RUNNING)[0].block_tables[0][1]
        bench.add("b", prompt(9, 2), max_tokens=4)
        with pytest.raises(AssertionError, match="I16"):
            bench.run()

    def test_a_missing_copy_is_caught(self) -> None:
        class Forgetful(FakeRunner):
            def forward(self, step: Step) -> None:
                super().forward(Step(step.step_id, step.work, step.new_rows, (), step.released_rows))

        bench = Bench(runner=Forgetful)
        bench.add("a", prompt(9), n=2, max_tokens=4)
        with pytest.raises(AssertionError, match="I16"):
            bench.run()

    def test_a_block_that_is_published_too_early_is_caught(self) -> None:
        bench = Bench(depth=2, num_blocks=64, budget=8)
        bench.add("a", prompt(20), max_tokens=4)
        bench.step()
        sequence = bench.sequences(Status.RUNNING)[0]
        sequence.num_computed_tokens = 8
        bench.scheduler.cache.publish(sequence)
        with pytest.raises(AssertionError, match="I4"):
            bench.check()

    def test_a_forgotten_release_is_caught(self) -> None:
        bench = Bench()
        bench.add("a", prompt(9), max_tokens=4)
        bench.step()
        bench.pool.share([bench.sequences(Status.RUNNING)[0].block_tables[0][0]])
        with pytest.raises(AssertionError, match="I2"):
            bench.step()


def test_a_context_larger_than_the_pool_is_refused() -> None:
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=65)
    with pytest.raises(ValueError, match="max_model_len 65 tokens does not fit into 16 blocks of 4"):
        Scheduler(config, BlockPool(16, 4))


def test_a_result_of_another_step_is_refused() -> None:
    bench = Bench()
    bench.add("a", prompt(4), max_tokens=4)
    step = bench.scheduler.schedule(0.0)
    assert step is not None
    bench.runner.forward(step)
    sampled = bench.runner.collect()
    for other in (Sampled(2, sampled.rows), Sampled(1, ())):
        with pytest.raises(ValueError, match="expected step 1 with rows"):
            bench.scheduler.apply(other)
