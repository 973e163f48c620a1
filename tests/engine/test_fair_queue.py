"""Fair sharing by key: who goes first, who gives way, and the bound of invariant I13."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import pytest
from support.bench import Bench, RareFaults, prompt

from quire.engine.fair_queue import OUTPUT_WEIGHT, PROMPT_WEIGHT, FairQueue
from quire.engine.faults import NO_FAULTS
from quire.engine.messages import Add, pack_ids
from quire.engine.queues import MAX_PREEMPTIONS
from quire.engine.sampling_params import SamplingParams
from quire.engine.sequence import Group, Sequence
from quire.engine.step import Step


def sequence(key_id: str, arrival: int, *, num_prompt_tokens: int = 4, weight: float = 1.0) -> Sequence:
    add = Add(f"{key_id}{arrival}", pack_ids(range(num_prompt_tokens)), SamplingParams(), key_id=key_id, weight=weight)
    return Sequence(Group(add, 0.0), add, 0, (arrival, 0), 64)


def queue_of(*sequences: Sequence) -> FairQueue:
    queue = FairQueue()
    for one in sequences:
        queue.add(one)
    return queue


class TestCounters:
    def test_prompt_tokens_cost_one_and_output_tokens_two(self) -> None:
        queue, one = FairQueue(), sequence("a", 1, num_prompt_tokens=4)
        queue.charge(one, 4)
        assert queue.service("a") == 4
        queue.charge(one, 7)
        assert queue.service("a") == 4 + 2 * 3
        queue.charge(sequence("a", 2, num_prompt_tokens=4), 6)
        assert queue.service("a") == 10 + 4 + 2 * 2, "a chunk may end a prompt and sample"

    def test_what_is_computed_again_is_not_charged_again(self) -> None:
        queue, one = FairQueue(), sequence("a", 1)
        for num_tokens in (3, 6, 2, 4, 6):
            queue.charge(one, num_tokens)
        assert queue.service("a") == 4 + 2 * 2

    def test_a_weight_divides_the_cost(self) -> None:
        queue = FairQueue()
        queue.charge(sequence("a", 1, weight=2.0), 4)
        assert queue.service("a") == 2

    def test_a_key_that_was_idle_is_lifted_to_the_least_of_those_that_wait(self) -> None:
        busy, other = sequence("busy", 1), sequence("other", 2)
        queue = queue_of(busy, other)
        queue.charge(busy, 4)
        queue.charge(other, 3)
        queue.add(sequence("new", 3))
        assert queue.service("new") == 3
        queue.add(sequence("new", 4))
        queue.charge(other, 4)
        assert queue.service("new") == 3, "lifted when it begins to wait, and not again"

    def test_where_nobody_waits_the_last_one_to_wait_sets_the_level(self) -> None:
        queue = queue_of(busy := sequence("busy", 1))
        queue.charge(busy, 4)
        queue.take(busy)
        queue.add(sequence("new", 2))
        assert queue.service("new") == 4


class TestOrder:
    def test_the_smallest_counter_goes_first_and_within_a_key_the_first_to_come(self) -> None:
        heavy, first, second = sequence("heavy", 1), sequence("light", 2), sequence("light", 3)
        queue = queue_of(heavy, first, second)
        queue.charge(heavy, 4)
        assert [queue.next(0.0, tried) for tried in ([], [first], [first, second])] == [first, second, None]

    def test_nobody_of_another_key_passes_one_that_lacks_room(self) -> None:
        queue = queue_of(light := sequence("light", 1), sequence("heavy", 2))
        queue.refuse(light, 0.0)
        assert queue.next(0.0, [light]) is None

    def test_one_that_waits_for_its_prefix_holds_nobody_up(self) -> None:
        queue = queue_of(light := sequence("light", 1), heavy := sequence("heavy", 2))
        light.shadowing_since = 0.0
        assert queue.next(0.0, [light]) is heavy

    def test_a_queue_that_is_left_is_closed(self) -> None:
        queue = queue_of(one := sequence("a", 1), two := sequence("b", 2))
        queue.remove(one)
        queue.take(two)
        assert (len(queue), list(queue), queue.next(0.0, [])) == (0, [], None)

    def test_the_newest_of_the_key_that_had_most_gives_way_but_never_the_oldest(self) -> None:
        running = [sequence("heavy", 1), sequence("heavy", 2), sequence("heavy", 3), sequence("light", 4)]
        queue = FairQueue()
        for one in running:
            one.block_tables = [[0]]
        queue.charge(running[0], 4)
        assert queue.victim(running) is running[2]
        running[2].num_preemptions = MAX_PREEMPTIONS
        assert queue.victim(running) is running[1]
        running[1].block_tables = []
        assert queue.victim(running) is running[3]
        assert queue.victim(running[:1]) is None

    def test_a_key_without_a_prompt_under_way_may_always_begin_one(self) -> None:
        queue, under_way = FairQueue(), [sequence("heavy", number) for number in range(4)]
        assert not queue.may_begin(sequence("heavy", 5), under_way)
        assert queue.may_begin(sequence("light", 6), under_way)


def test_a_light_key_gets_in_beside_a_heavy_one() -> None:
    bench = Bench(policy="fair", max_num_seqs=4, budget=32, num_blocks=128)
    for number in range(20):
        bench.add(f"heavy{number}", prompt(8, number), key_id="heavy", max_tokens=6)
    for _ in range(3):
        bench.step()
    bench.add("light", prompt(4, 99), key_id="light", max_tokens=2)
    bench.run()
    order = [new.request_id for step in bench.runner.log for new in step.new_rows]
    assert order.index("light") <= 4 + 4, "at the head of the queue as soon as a row is free"
    bench.assert_expected()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_light_key_does_not_wait_for_a_row(depth: int) -> None:
    """G12: a heavy key holds every row with long answers; the newest of them makes way, once, and loses no token."""
    bench = Bench(policy="fair", max_num_seqs=3, budget=32, num_blocks=128, depth=depth)
    for number in range(6):
        bench.add(f"heavy{number}", prompt(8, number), key_id="heavy", max_tokens=40)
    for _ in range(5):
        bench.step()
    bench.add("light", prompt(4, 99), key_id="light", max_tokens=3)
    rows = [row.request_id for _ in range(2 * depth) for row in bench.step()]
    assert "light" in rows
    assert bench.core.statistics().num_preemptions == 1
    bench.run()
    bench.assert_expected()


def test_who_makes_way() -> None:
    running = [sequence("heavy", 1), sequence("single", 2), sequence("heavy", 3), sequence("heavy", 4)]
    for one in running:
        one.block_tables = [[0]]
    queue = queue_of(sequence("light", 5))
    queue.charge(running[1], 30)
    assert queue.makes_way(running) is running[3], "not the only one of a key, whatever that has had"
    assert queue.makes_way([*running, sequence("light", 6)]) is None, "light has a row"
    assert queue.makes_way(running[:2]) is None
    assert FairQueue().makes_way(running) is None


def test_a_light_keys_prompt_comes_before_those_under_way() -> None:
    bench = Bench(policy="fair", budget=32, num_blocks=512, max_model_len=256)
    for number in range(6):
        bench.add(f"heavy{number}", prompt(200, number), key_id="heavy", max_tokens=1)
    bench.step()
    bench.add("light", prompt(60, 99), key_id="light", max_tokens=1)
    bench.step()
    while not any(row.request_id == "light" for row in bench.step()):
        pass
    assert len(bench.runner.log) <= 8, "half of each step is its own"
    assert not bench.answers["heavy1", 0].token_ids


def test_a_victim_that_had_its_turn_in_this_step_gives_it_back() -> None:
    bench = Bench(policy="fair", num_blocks=12, max_model_len=40, budget=16)
    bench.add("old", prompt(4, 1), key_id="light", max_tokens=20)
    bench.step()
    bench.add("heavy", prompt(15, 2), key_id="heavy", max_tokens=20)
    bench.add("light", prompt(3, 3), key_id="light", max_tokens=20)
    bench.run()
    assert bench.core.statistics().num_preemptions
    bench.assert_expected()


class Service:
    """What each key has had, from the steps alone."""

    def __init__(self, key_of: dict[str, str]) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self._key_of, self._rows, self._served = key_of, {}, defaultdict(int)
        self._num_prompt: dict[tuple[str, int], int] = {}

    def take(self, step: Step) -> None:
        for new in step.new_rows:
            self._rows[new.row] = new.request_id, new.choice
            self._num_prompt[new.request_id, new.choice] = new.num_prompt_tokens
        for work in step.work:
            self._serve(self._rows[work.row], work.start, work.start + work.num_tokens)
            for row in work.samples:
                end = work.start + work.num_tokens
                self._serve(self._rows[row], end, end + 1)

    def _serve(self, choice: tuple[str, int], start: int, end: int) -> None:
        for position in range(max(start, self._served[choice]), end):
            output = position >= self._num_prompt[choice]
            self.total[self._key_of[choice[0]]] += OUTPUT_WEIGHT if output else PROMPT_WEIGHT
        self._served[choice] = max(end, self._served[choice])


def widest_gap(policy: str, seed: int, depth: int, faulty: bool) -> tuple[float, float]:
    """Random keys, some of them greedy: the widest difference of service between two while both wait, and the bound."""
    rng = random.Random(seed)
    block_size, num_blocks = 4, 20
    faults = RareFaults(seed, {"scheduler.preempt": 0.03, "scheduler.budget": 0.05}) if faulty else NO_FAULTS
    bench = Bench(
        policy=policy,
        num_blocks=num_blocks,
        block_size=block_size,
        budget=24,
        depth=depth,
        caching=False,
        faults=faults,
    )
    key_of: dict[str, str] = {}
    service, gaps, num_seen = Service(key_of), defaultdict(list), 0
    widest = 0.0
    appetite = {"greedy": 6, "longwinded": 2, "modest": 1, "late": 1}
    for moment in range(700):
        for key_id, most in appetite.items():
            waiting = sum(one.group.key_id == key_id for one in bench.scheduler.roster.queue)
            if waiting < most and (key_id != "late" or moment % 300 > 150):
                name = str(len(key_of))
                key_of[name] = key_id
                length = {"greedy": rng.randint(1, 8), "longwinded": 30}.get(key_id, rng.randint(8, 24))
                max_tokens = rng.randint(1, 24 if key_id == "modest" else 8)
                bench.add(name, prompt(length, len(key_of)), key_id=key_id, max_tokens=max_tokens)
        bench.step()
        for step in bench.runner.log[num_seen:]:
            service.take(step)
        num_seen = len(bench.runner.log)
        waits = {one.group.key_id for one in bench.scheduler.roster.queue}
        for pair in itertools.combinations(appetite, 2):
            if not waits.issuperset(pair):
                gaps.pop(pair, None)
                continue
            gaps[pair].append(service.total[pair[0]] - service.total[pair[1]])
            widest = max(widest, max(gaps[pair]) - min(gaps[pair]))
    return widest, 2 * max(PROMPT_WEIGHT * 30, OUTPUT_WEIGHT * num_blocks * block_size)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_keys_that_wait_get_equal_service(seed: int, faulty: bool, depth: int) -> None:
    """I13, the bound of virtual token counters."""
    widest, bound = widest_gap("fair", seed, depth, faulty)
    assert 0 < widest <= bound


@pytest.mark.chaos
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("seed", range(100, 140))
def test_keys_that_wait_get_equal_service_over_many_seeds(seed: int, faulty: bool, depth: int) -> None:
    """I13 in full."""
    widest, bound = widest_gap("fair", seed, depth, faulty)
    assert 0 < widest <= bound


def test_first_come_first_served_is_not_fair() -> None:
    widest, bound = widest_gap("fcfs", 0, 1, False)
    assert widest > bound
