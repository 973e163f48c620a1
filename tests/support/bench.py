"""A test bench for the pure core: an `EngineCore` on a fake runner, with everything checked after every step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import ONE_GROUP, CacheGroup, has_window
from quire.engine.core import EngineCore
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.messages import Add, Cancel, CancelReason, FinishReason, LiveIds, OutputRow, pack_ids, unpack_ids
from quire.engine.prefix_index import PrefixIndex
from quire.engine.sampling_params import SamplingParams
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.sequence import Sequence, Status
from quire.engine.step import Step
from quire.simulator.fake_runner import FakeRunner, oracle

VOCAB_SIZE = 50
FULL_AND_WINDOW = (CacheGroup(), CacheGroup(window=6))
"""A made-up model whose layers alternate between full attention and a small window."""
GROUPS = (
    ONE_GROUP,
    FULL_AND_WINDOW,
    (CacheGroup(window=9),),
    (CacheGroup(window=1), CacheGroup(), CacheGroup(window=17)),
)
Choice = tuple[str, int]


def prompt(length: int, first: int = 1) -> list[int]:
    """`length` token ids that differ from those of another `first`."""
    return [(first * 7 + position * position) % 50 for position in range(length)]


class RareFaults(Faults):
    """Takes each rare branch with a probability of its own, from a seed; counts how often."""

    def __init__(self, seed: int, rates: dict[str, float]) -> None:
        self._random, self._rates = random.Random(seed), rates
        self.taken: dict[str, int] = {}

    def rarely(self, name: str) -> bool:
        """True at the rate of `name`."""
        rare = self._random.random() < self._rates.get(name, 0.0)
        self.taken[name] = self.taken.get(name, 0) + rare
        return rare


class DecodingRunner(FakeRunner):
    """Sees every step as a second process would: decoded from its bytes."""

    def forward(self, step: Step) -> None:
        """As `FakeRunner`, on a copy."""
        super().forward(msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=Step))


@dataclass
class Answer:
    """What one choice has answered so far."""

    token_ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    rows: list[OutputRow] = field(default_factory=list)


class Bench:
    """Adds, cancels and steps; `answers` holds what came out. Every step is checked: I1-I7, I9-I11, I14, I16, I19.

    `num_blocks` None: just enough for one sequence of `max_model_len`. With a window among `groups` block 0 is the null
    block.
    """

    def __init__(
        self,
        *,
        num_blocks: int | None = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        budget: int = 64,
        max_model_len: int = 64,
        threshold: int | None = None,
        policy: str = "fcfs",
        target_itl: float | None = None,
        depth: int = 1,
        caching: bool = True,
        hash_bits: int = 128,
        shuffle_seed: int | None = 0,
        faults: Faults = NO_FAULTS,
        groups: tuple[CacheGroup, ...] = ONE_GROUP,
        runner: type[FakeRunner] = DecodingRunner,
        **runner_options: object,
    ) -> None:
        first = 1 if has_window(groups) else 0
        if num_blocks is None:
            num_blocks = first + len(groups) * -(-max_model_len // block_size)
        order = list(range(first, num_blocks))
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(order)
        index = PrefixIndex(b"secret", hash_bits) if caching else None
        self.pool = BlockPool(
            num_blocks, block_size, prefix_index=index, order=order, null_block=has_window(groups), faults=faults
        )
        self.config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=max_model_len,
            long_prefill_token_threshold=threshold,
            policy=policy,  # type: ignore[arg-type]
            target_itl=target_itl,
        )
        self.groups = groups
        self.scheduler = Scheduler(self.config, self.pool, faults, groups)
        self.salts: dict[str, bytes] = {}
        options = {"vocab_size": VOCAB_SIZE, "salt_of": lambda request_id: self.salts[request_id]} | runner_options
        self.runner = runner(num_blocks, block_size, groups=groups, **options)  # type: ignore[arg-type]
        self.core = EngineCore(self.scheduler, self.runner, depth=depth, faults=faults)
        self.faultless = faults is NO_FAULTS
        self.now = 0.0
        self.adds: dict[str, Add] = {}
        self.answers: dict[Choice, Answer] = {}
        self.expected: dict[Choice, tuple[list[int], str]] = {}

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        salt: bytes = b"",
        priority: int = 0,
        key_id: str = "",
        weight: float = 1.0,
        deadline: float | None = None,
        alone: int = 0,
        **params: object,
    ) -> None:
        """A request; `params` are those of `SamplingParams`."""
        sampling = SamplingParams(**params)  # type: ignore[arg-type]
        ids = pack_ids(prompt)
        add = Add(request_id, ids, sampling, priority, salt, key_id, weight=weight, deadline=deadline, alone=alone)
        self.salts[request_id], self.adds[request_id] = salt, add
        for choice in range(sampling.n):
            self.answers[request_id, choice] = Answer()
            self.expected[request_id, choice] = oracle(
                prompt,
                choice,
                sampling,
                vocab_size=VOCAB_SIZE,
                max_model_len=self.config.max_model_len,
                salt=salt,
                groups=self.groups,
            )
        self.core.add(add, self.now)
        self.check()

    def cancel(self, request_id: str, choice: int | None = None, reason: CancelReason = "client_gone") -> None:
        """As a client that leaves."""
        self.core.cancel(Cancel(request_id, choice, reason), self.now)
        self.check()

    def live(self, *request_ids: str) -> None:
        """The HTTP side names its requests."""
        self.core.live_ids(LiveIds(request_ids), self.now)
        self.check()

    def step(self) -> list[OutputRow]:
        """One step, 10 ms long, and everything checked."""
        oldest = self.scheduler.roster.running[0] if self.scheduler.roster.running else None
        before = oldest.num_preemptions if oldest is not None else 0
        must_move = bool(self.scheduler.roster.groups) and not self.scheduler.flights and self.faultless
        num_steps = self.core.statistics().num_steps
        outputs = self.core.step(lambda: self.now)
        self.now += 0.01
        if must_move and not any(row.finish_reason == "timeout" for row in (outputs.rows if outputs else ())):
            assert self.core.statistics().num_steps == num_steps + 1, "I11: nothing was scheduled"
        if oldest is not None and self.faultless:
            assert oldest.num_preemptions == before, f"I14: the oldest was preempted: {oldest}"
        rows = list(outputs.rows) if outputs is not None else []
        for row in rows:
            self._take(row)
        self.check()
        idle = [block_id for block_id in self.pool.free_block_ids() if not self.pool.is_cached(block_id)]
        self.runner.poison(idle)
        return rows

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is left to do; then everyone has answered and nothing is held."""
        for _ in range(max_steps):
            if not self.core.has_work():
                break
            self.step()
        assert not self.core.has_work(), f"still at work after {max_steps} steps"
        assert self.pool.num_used == 0
        assert not self.core.request_ids()
        assert all(answer.reason for answer in self.answers.values()), "a choice never ended"

    def assert_expected(self) -> None:
        """Every answer is the oracle's, whole."""
        assert {choice: (answer.token_ids, answer.reason) for choice, answer in self.answers.items()} == self.expected

    def check(self) -> None:
        """Invariants of this moment."""
        found = self.core.check()
        assert not found, "; ".join(found)
        step = self.runner.log[-1] if self.runner.log else None
        if step is not None:
            assert 0 < step.num_tokens <= self.config.max_num_batched_tokens, "I10: budget"
            assert len(step.work) <= self.config.max_num_seqs, "I10: rows"

    def sequences(self, *statuses: Status) -> list[Sequence]:
        """Unfinished sequences in one of these states."""
        groups = self.scheduler.roster.groups.values()
        return [sequence for group in groups for sequence in group.choices.values() if sequence.status in statuses]

    def _take(self, row: OutputRow) -> None:
        choice = (row.request_id, row.choice)
        answer = self.answers[choice]
        assert answer.reason is None, f"I9: {choice} answers after its end"
        answer.token_ids += unpack_ids(row.token_ids)
        answer.reason = row.finish_reason
        answer.rows.append(row)
        tokens, _ = self.expected[choice]
        assert answer.token_ids == tokens[: len(answer.token_ids)], f"I16: {choice} has a wrong token"
        assert (row.failure is not None) is (row.finish_reason == "error")
