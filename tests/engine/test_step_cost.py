"""The learned cost of a step, and the share of prompts that a target for the time between tokens leaves."""

from __future__ import annotations

import random

import pytest
from support.bench import Bench, prompt

from quire.engine.core import EngineCore
from quire.engine.messages import StepOutputs
from quire.engine.step_cost import MIN_PREFILL_TOKENS, StepCost


def machine(num_decodes: int, num_prefill_tokens: int, speed: float = 1.0) -> float:
    """Seconds of a made-up machine: 4 ms a step, 0.5 ms a row, 0.2 ms a prompt token."""
    return speed * (0.004 + 0.0005 * num_decodes + 0.0002 * num_prefill_tokens)


def teach(cost: StepCost, rng: random.Random, num_steps: int, speed: float = 1.0, target: float = 0.05) -> None:
    """Steps as the scheduler makes them: decodes, and prompts for what the target leaves."""
    for _ in range(num_steps):
        num_decodes = rng.randint(1, 12)
        prefill = cost.num_prefill_tokens(num_decodes, target) if rng.random() < 0.7 else 0
        noise = rng.uniform(0.95, 1.05)
        cost.observe(num_decodes, prefill, noise * machine(num_decodes, prefill, speed))


@pytest.mark.parametrize("guess", [None, 1e-5, 2e-4, 5e-3])
def test_a_wrong_guess_is_corrected_within_a_few_steps(guess: float | None) -> None:
    cost = StepCost(guess)
    teach(cost, random.Random(1), 40)
    for num_decodes in (2, 10):
        seconds = machine(num_decodes, cost.num_prefill_tokens(num_decodes, 0.05))
        assert 0.03 < seconds < 0.06


def test_a_machine_that_slows_down_is_followed() -> None:
    cost, rng = StepCost(2e-4), random.Random(2)
    teach(cost, rng, 30)
    fast = cost.num_prefill_tokens(4, 0.05)
    teach(cost, rng, 30, speed=3.0)
    slow = cost.num_prefill_tokens(4, 0.05)
    assert slow < fast / 2
    assert 0.03 < machine(4, slow, 3.0) < 0.07


def test_one_slow_step_is_not_believed() -> None:
    cost = StepCost(2e-4)
    teach(cost, random.Random(3), 30)
    before = cost.num_prefill_tokens(4, 0.05)
    cost.observe(4, before, 10.0)
    assert cost.num_prefill_tokens(4, 0.05) > before / 4


def test_prompts_go_on_when_decodes_alone_take_longer_than_the_target() -> None:
    cost = StepCost(2e-4)
    for _ in range(20):
        cost.observe(100, 0, 0.5)
    assert cost.num_prefill_tokens(100, 0.05) == MIN_PREFILL_TOKENS


def test_rates_never_become_free() -> None:
    cost = StepCost(1e-3)
    for _ in range(100):
        cost.observe(8, 64, 0.0)
    assert 64 < cost.num_prefill_tokens(8, 0.05) < 10**9


def test_nothing_is_predicted_before_prompts_were_seen() -> None:
    cost = StepCost()
    assert cost.prompt_seconds(1000) == 0.0
    for _ in range(50):
        cost.observe(0, 100, machine(0, 100))
    assert 0.1 < cost.prompt_seconds(1000) < 0.4
    assert StepCost(2e-4).prompt_seconds(1000) == pytest.approx(0.2), "what the warm-up measured counts"


class TimedBench(Bench):
    """A bench on a machine whose steps take time: `seconds` of each step, by its decode rows and prompt tokens."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.seconds: list[float] = []
        self.core.step = self._timed_step  # type: ignore[method-assign]

    def _timed_step(self, now: object) -> StepOutputs | None:
        calls = iter(range(100))

        def clock() -> float:
            # The scheduler is asked at the first reading; whatever is read once the step was launched is after it.
            if next(calls) == 2 and self.runner.log:
                step = self.runner.log[-1]
                chunks = [work.num_tokens for work in step.work]
                self.seconds.append(machine(chunks.count(1), sum(chunks) - chunks.count(1)))
                self.now += self.seconds[-1]
            return self.now

        return EngineCore.step(self.core, clock)


def test_a_long_prompt_does_not_stall_the_streams() -> None:
    """G13: with a target no step takes much longer than it, and the prompt gets all that it leaves."""
    for target, longest in ((None, 0.1), (0.03, 0.045)):
        bench = TimedBench(budget=512, num_blocks=600, max_model_len=2048, target_itl=target)
        for number in range(4):
            bench.add(f"stream{number}", prompt(8, number), max_tokens=60)
        for _ in range(10):
            bench.step()
        bench.add("long", prompt(1500, 9), max_tokens=1)
        num_before = len(bench.seconds)
        bench.run()
        gaps = bench.seconds[num_before:]
        assert (max(gaps) > longest) is (target is None)
        if target is not None:
            busy = [seconds for seconds in gaps if seconds > 0.007]
            assert sorted(busy)[len(busy) // 2] > 0.02, "the prompt uses the time that there is"
        bench.assert_expected()


def test_a_short_prompt_comes_in_beside_a_long_one_under_a_target() -> None:
    bench = TimedBench(budget=512, num_blocks=600, max_model_len=2048, target_itl=0.03)
    bench.add("stream", prompt(8, 1), max_tokens=60)
    for _ in range(3):
        bench.step()
    bench.add("long", prompt(1500, 9), max_tokens=1)
    for _ in range(5):
        bench.step()
    bench.add("short", prompt(20, 3), max_tokens=1)
    rows = [row.request_id for _ in range(2) for row in bench.step()]
    assert "short" in rows


def test_without_streams_a_prompt_takes_the_whole_budget() -> None:
    bench = Bench(budget=64, num_blocks=64, max_model_len=128, target_itl=0.001)
    bench.add("long", prompt(100, 9), max_tokens=1)
    bench.step()
    assert bench.runner.log[0].num_tokens == 64


def test_who_waits_past_the_deadline_is_not_computed() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add("first", prompt(4), max_tokens=20)
    bench.add("late", prompt(4, 2), max_tokens=4, deadline=0.05)
    bench.run()
    assert bench.answers["late", 0].reason == "timeout"
    assert "late" not in bench.runner.num_computed_tokens
    assert bench.answers["first", 0].token_ids == bench.expected["first", 0][0]


def test_a_deadline_ends_what_runs_with_what_there_is() -> None:
    bench = Bench()
    bench.add("a", prompt(4), n=2, max_tokens=40, deadline=0.055)
    bench.run()
    for choice in range(2):
        answer = bench.answers["a", choice]
        assert answer.reason == "timeout"
        assert len(answer.token_ids) in (5, 6)


def test_a_deadline_that_is_kept_changes_nothing() -> None:
    bench = Bench()
    bench.add("a", prompt(4), max_tokens=4, deadline=100.0)
    bench.run()
    bench.now = 200.0
    bench.add("b", prompt(4), max_tokens=4)
    bench.run()
    bench.assert_expected()


def test_a_prompt_that_takes_longer_than_is_left_is_given_up_before_it_begins() -> None:
    bench = TimedBench(budget=64, num_blocks=700, max_model_len=1024, max_num_seqs=1)
    for number in range(8):
        bench.add(str(number), prompt(60, number), max_tokens=1)
    bench.run()
    num_steps, now = len(bench.runner.log), bench.now
    bench.add("hopeless", prompt(900, 1), max_tokens=1, deadline=now + 0.05)
    bench.add("quick", prompt(30, 2), max_tokens=1, deadline=now + 0.05)
    bench.run()
    assert (bench.answers["hopeless", 0].reason, bench.answers["quick", 0].reason) == ("timeout", "length")
    assert len(bench.runner.log) == num_steps + 1
    bench.add("again", prompt(60, 1), max_tokens=1, deadline=bench.now + 0.006)
    bench.run()
    assert bench.answers["again", 0].reason == "length", "what the prefix cache holds costs nothing"
