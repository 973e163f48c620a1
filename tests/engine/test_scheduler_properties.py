"""Random lives of the whole pure core, every step of them checked (tests/support/bench.py), against the oracle."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.bench import FULL_AND_WINDOW, GROUPS, Bench, RareFaults

from quire.engine.cache_groups import ONE_GROUP, CacheGroup, has_window
from quire.engine.messages import Failure
from quire.engine.step import Step

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=30)
RATES = {
    "scheduler.budget": 0.1,
    "scheduler.preempt": 0.05,
    "scheduler.watermark": 0.2,
    "pool.evict": 0.05,
    "pool.refuse": 0.05,
    "core.apply_early": 0.5,
}


class Life(RuleBasedStateMachine):
    """Requests come, leave and are answered, in a pool that hypothesis chooses; at the end everyone has ended once."""

    @initialize(
        depth=st.sampled_from([1, 2, 4]),
        block_size=st.sampled_from([1, 2, 4, 16]),
        spare=st.integers(0, 20),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 40),
        caching=st.booleans(),
        hash_bits=st.sampled_from([128, 6]),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        groups=st.sampled_from(GROUPS),
    )
    def begin(self, block_size: int, spare: int, groups: tuple[CacheGroup, ...], **options: object) -> None:
        """A pool that holds the largest request, and a little more."""
        num_blocks = has_window(groups) + len(groups) * 48 // block_size + spare
        self.bench = Bench(
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=48,
            groups=groups,
            **options,  # type: ignore[arg-type]
        )
        self.count = 0

    @rule(
        tokens=TOKENS,
        n=st.integers(1, 4),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 3),
        salt=st.sampled_from([b"", b"x"]),
        priority=st.integers(0, 2),
        key_id=st.sampled_from(["a", "b", "c"]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def add(self, tokens: list[int], salt: bytes, priority: int, key_id: str, **params: object) -> None:
        """A request of few distinct tokens, so that prefixes meet."""
        keys = {"salt": salt, "priority": priority, "key_id": key_id}
        self.bench.add(str(self.count), tokens, stop_token_ids=(1, 2, 3), **keys, **params)
        self.count += 1

    @precondition(lambda self: self.count)
    @rule(data=st.data(), choice=st.sampled_from([None, None, 0, 1]))
    def cancel(self, data: st.DataObject, choice: int | None) -> None:
        """Also of requests that have ended, and of choices that never were."""
        self.bench.cancel(str(data.draw(st.integers(0, self.count - 1))), choice)

    @rule(seconds=st.sampled_from([0.0, 3.0, 16.0]), data=st.data())
    def name_the_living(self, seconds: float, data: st.DataObject) -> None:
        """The HTTP side forgets some."""
        self.bench.now += seconds
        ids = self.bench.core.request_ids()
        self.bench.live(*(data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else ()))

    @rule(count=st.integers(1, 5))
    def step(self, count: int) -> None:
        """A few steps."""
        for _ in range(count):
            self.bench.step()

    def teardown(self) -> None:
        """Nobody waits for ever, and nothing is left."""
        if hasattr(self, "bench"):
            self.bench.run(max_steps=2000)
            for choice, answer in self.bench.answers.items():
                if answer.reason in ("stop", "length"):
                    assert (answer.token_ids, answer.reason) == self.bench.expected[choice]


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None)


def live(bench: Bench, rng: random.Random, num_events: int, *, cancels: bool) -> None:
    """Requests at random moments, some of which are given up."""
    count = 0
    for _ in range(num_events):
        event = rng.random()
        if event < 0.25:
            prompt = [7] * rng.randrange(24) + [rng.randrange(3) for _ in range(rng.randint(1, 16))]
            bench.add(
                str(count),
                prompt,
                salt=rng.choice([b"", b"", b"x"]),
                n=rng.choice([1, 1, 1, 2, 5]),
                max_tokens=rng.randint(1, 24),
                min_tokens=rng.choice([0, 5]),
                stop_token_ids=(1, 9),
                prompt_logprobs=rng.choice([None, None, None, 0]),
            )
            count += 1
        elif event < 0.32 and count and cancels:
            bench.cancel(str(rng.randrange(count)), rng.choice([None, 0, 1, 2]))
        else:
            bench.step()
    bench.run(max_steps=20_000)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("block_size", [1, 16, 128])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("groups", [ONE_GROUP, FULL_AND_WINDOW], ids=["one group", "two groups"])
def test_every_answer_is_the_oracles(
    depth: int, block_size: int, caching: bool, groups: tuple[CacheGroup, ...]
) -> None:
    """Chunked, cached, preempted, forked: whatever happens, each answer is what its request alone would have got."""
    rng = random.Random(f"{depth} {block_size} {caching}")
    preemptions = cached = 0
    for budget, num_blocks in ((3, None), (16, None), (64, len(groups) * (400 // block_size + 8))):
        bench = Bench(
            block_size=block_size,
            num_blocks=num_blocks,
            max_model_len=64,
            budget=budget,
            depth=depth,
            caching=caching,
            shuffle_seed=rng.randrange(99),
            groups=groups,
        )
        live(bench, rng, 80, cancels=False)
        bench.assert_expected()
        preemptions += bench.core.statistics().num_preemptions
        cached += bench.core.statistics().num_cached_tokens
    if block_size < 128:
        assert preemptions > 0, "this life has no preemption in it"
        assert (cached > 0) is caching


def test_rare_branches_change_no_answer() -> None:
    """Faults switched on at random: evictions, refusals, preemptions, tiny budgets. No wrong token, nothing leaked."""
    taken: Counter[str] = Counter()
    for seed in range(16):
        rng = random.Random(seed)
        groups = GROUPS[seed % len(GROUPS)]
        faults = RareFaults(seed, {name: rate for name, rate in RATES.items() if rng.random() < 0.7})
        bench = Bench(
            block_size=rng.choice([1, 2, 4]),
            num_blocks=len(groups) * rng.choice([64, 80, 200]) + 1,
            max_model_len=64,
            groups=groups,
            budget=rng.choice([4, 32]),
            depth=rng.choice([1, 2, 4]),
            hash_bits=rng.choice([128, 6]),
            faults=faults,
        )
        live(bench, rng, 150, cancels=True)
        taken.update(faults.taken)
        for choice, answer in bench.answers.items():
            if answer.reason in ("stop", "length"):
                assert (answer.token_ids, answer.reason) == bench.expected[choice]
    assert taken.keys() == RATES.keys(), "a rare branch has no rate, or is gone"
    assert min(taken.values()) >= 20, f"a rare branch was hardly ever taken: {taken}"


def test_the_same_life_twice_makes_the_same_steps() -> None:
    """I18: nothing in the core depends on anything but its inputs."""
    logs = []
    for _ in range(2):
        bench = Bench(depth=2, num_blocks=16, budget=24)
        live(bench, random.Random(5), 200, cancels=True)
        logs.append(bench.runner.log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("seed", range(8))
def test_failures_end_only_their_own_requests(seed: int) -> None:
    """Rows fail and whole steps raise, at any depth; everyone else gets the oracle's answer."""
    rng = random.Random(seed)
    raised: set[str] = set()

    def raises(step: Step) -> None:
        if rng.random() < 0.02:
            raised.update(bench.runner.rows[work.row].request_id for work in step.work)
            raise RuntimeError("planted")

    def fails(step_id: int, row: int, request_id: str) -> Failure | None:
        return Failure("model_numerics", "planted") if request_id.endswith("3") and rng.random() < 0.2 else None

    bench = Bench(depth=rng.choice([1, 2, 4]), num_blocks=rng.choice([16, 60]), budget=24, raises=raises, fails=fails)
    live(bench, rng, 250, cancels=False)
    for (request_id, choice), answer in bench.answers.items():
        if answer.reason == "error":
            assert request_id in raised or request_id.endswith("3") or bench.adds[request_id].params.n > 1
        else:
            assert (answer.token_ids, answer.reason) == bench.expected[request_id, choice]
    assert any(answer.reason == "error" for answer in bench.answers.values())
