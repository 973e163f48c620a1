"""The engine's core: steps in flight, rows in order, and a runner that raises."""

from __future__ import annotations

import pytest
from support.bench import Bench

from quire.engine.block_pool import BlockPool
from quire.engine.core import EngineCore
from quire.engine.messages import StepOutputs
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.step import Sampled, Step
from quire.simulator.fake_runner import FakeRunner


class CountingRunner(FakeRunner):
    """Remembers how many steps were in flight at most."""

    most = 0

    def forward(self, step: Step) -> None:
        """As `FakeRunner`."""
        super().forward(step)
        self.most = max(self.most, len(self._pending))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_as_many_steps_are_in_flight_as_the_depth_allows(depth: int) -> None:
    bench = Bench(depth=depth, runner=CountingRunner)
    bench.add("a", [1, 2, 3], max_tokens=12)
    bench.run()
    assert isinstance(bench.runner, CountingRunner)
    assert bench.runner.most == depth
    assert len(bench.runner.log) == 12, "no step is launched in vain"
    bench.assert_expected()


def test_a_stop_token_costs_the_steps_in_flight_and_no_more() -> None:
    bench = Bench(depth=4)
    bench.add("a", [1, 2, 3], max_tokens=40, stop_token_ids=tuple(range(25)))
    bench.run()
    bench.assert_expected()
    assert len(bench.runner.log) <= len(bench.answers["a", 0].token_ids) + 3


def test_a_depth_below_one_is_refused() -> None:
    scheduler = Scheduler(SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=1, max_model_len=1), BlockPool(1, 1))
    with pytest.raises(ValueError, match="depth must be at least 1, found 0"):
        EngineCore(scheduler, FakeRunner(1, 1), depth=0)


def test_nothing_to_do_is_no_work_and_no_outputs() -> None:
    bench = Bench()
    assert not bench.core.has_work()
    assert bench.core.step(lambda: 0.0) is None


def test_rows_of_requests_that_end_between_steps_come_with_the_next_step() -> None:
    bench = Bench()
    bench.add("a", [1, 2], max_tokens=3)
    bench.cancel("a")
    assert bench.core.has_work()
    outputs = bench.core.step(lambda: 0.0)
    assert isinstance(outputs, StepOutputs)
    assert [(row.request_id, row.finish_reason) for row in outputs.rows] == [("a", "aborted")]
    assert not bench.core.has_work()


def test_statistics_and_ids() -> None:
    bench = Bench(max_num_seqs=2)
    for name in ("a", "b", "c"):
        bench.add(name, [1, 2, 3, 4, 5], max_tokens=3)
    bench.step()
    statistics = bench.core.statistics()
    assert (statistics.num_running, statistics.num_waiting, statistics.num_steps) == (1, 2, 1), "the herd waits"
    assert (statistics.num_used_blocks, statistics.num_cached_blocks, statistics.step_tokens) == (2, 1, 5)
    assert bench.core.request_ids() == ("a", "b", "c")
    bench.run()
    assert bench.core.statistics().num_generation_tokens == 9
    assert bench.core.request_ids() == ()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("where", ["forward", "collect"])
def test_a_step_that_raises_ends_its_requests_and_the_engine_goes_on(
    depth: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(FakeRunner):
        def forward(self, step: Step) -> None:
            if where == "forward" and step.step_id == 3:
                raise RuntimeError("planted")
            super().forward(step)

        def collect(self) -> Sampled:
            sampled = super().collect()
            if where == "collect" and sampled.step_id == 3:
                raise RuntimeError("planted")
            return sampled

    bench = Bench(depth=depth, runner=Raising)
    for name in ("a", "b"):
        bench.add(name, [ord(name)], max_tokens=9, n=2)
    bench.run()
    for answer in bench.answers.values():
        assert answer.reason == "error"
        failure = answer.rows[-1].failure
        assert failure is not None
        assert (failure.code, failure.status) == ("internal_error", 500)
    assert "step 3 failed" in caplog.text
    bench.add("c", [5, 6], max_tokens=9, n=2)
    bench.run()
    for choice in range(2):
        assert bench.answers["c", choice].token_ids == bench.expected["c", choice][0]


def test_check_names_what_is_broken() -> None:
    bench = Bench()
    bench.add("a", [1, 2, 3], max_tokens=5)
    bench.step()
    assert bench.core.check() == ()
    running = bench.scheduler.roster.running[0]
    running.num_scheduled_tokens += 5
    assert any(line.startswith("I10") for line in bench.core.check())
    running.num_scheduled_tokens -= 5
    bench.scheduler.roster.queue.add(running)
    assert any(line.startswith("I9") for line in bench.core.check())
    bench.scheduler.roster.queue.remove(running)
    bench.scheduler.roster.free_rows.pop()
    assert any("rows" in line for line in bench.core.check())
