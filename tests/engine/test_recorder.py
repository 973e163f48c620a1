"""The flight recorder keeps the last turns, and what it kept makes the core decide the same again."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest
from support.bench import FULL_AND_WINDOW, Bench, prompt

from quire.engine import recorder as recorder_module
from quire.engine.cache_groups import ONE_GROUP, CacheGroup
from quire.engine.core import EngineCore
from quire.engine.disguise import disguise
from quire.engine.messages import Add, Cancel, LiveIds, unpack_ids
from quire.engine.recorder import MAX_TURNS, FlightRecorder, Recording, encode
from quire.engine.step import Sampled, Step
from quire.simulator.flight import replay


class Recorded:
    """A bench whose loop runs as the engine's does, with a recorder."""

    def __init__(self, depth: int = 1, **options: Any) -> None:
        self.bench = Bench(depth=depth, **options)
        self.clock = itertools.count(100.0, 0.001)
        self.recorder = FlightRecorder(self.bench.scheduler, depth, lambda: next(self.clock))
        self.bench.core = EngineCore(self.bench.scheduler, self.recorder.watch(self.bench.runner), depth=depth)
        self.core = self.bench.core

    def add(self, name: str, ids: list[int], **options: Any) -> None:
        bench, now = self.bench, next(self.clock)
        bench.now = now
        bench.add(name, ids, **options)
        self.recorder.took(bench.adds[name], now)

    def cancel(self, name: str) -> None:
        now = next(self.clock)
        cancel = Cancel(name, None, "client_gone")
        self.core.cancel(cancel, now)
        self.recorder.took(cancel, now)

    def step(self) -> None:
        self.recorder.begin_step()
        self.core.step(self.recorder.now)

    def dump(self) -> Recording:
        """As it comes out of another process."""
        return msgspec.msgpack.decode(encode(self.recorder.dump("test")), type=Recording)


def busy_life(seed: int, depth: int, groups: tuple[CacheGroup, ...], num_steps: int = 300) -> Recorded:
    """Requests that share prefixes, choices, stop tokens, cancels, a pool that is too small."""
    choice, life = random.Random(seed), Recorded(depth, num_blocks=40, budget=24, groups=groups)
    for number in range(num_steps):
        if choice.random() < 0.25:
            ids = prompt(choice.randrange(1, 30), choice.randrange(3))
            stops = tuple(choice.sample(range(50), 3))
            life.add(f"r{number}", ids, max_tokens=choice.randrange(1, 30), stop_token_ids=stops,
                     n=choice.choice((1, 1, 2)), alone=3 * (choice.random() < 0.1))  # fmt: skip
        if choice.random() < 0.05:
            life.cancel(f"r{choice.randrange(number + 1)}")
        if life.core.has_work():
            life.step()
    return life


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("groups", [ONE_GROUP, FULL_AND_WINDOW], ids=["full", "window"])
@pytest.mark.parametrize("disguised", [False, True])
def test_a_recording_plays_again_to_the_same_steps(depth: int, groups: Any, disguised: bool) -> None:
    for seed in range(3):
        life = busy_life(seed, depth, groups)
        recording = life.dump()
        hits = life.core.statistics().prefix_cache_hits
        assert hits > 0
        if disguised:
            recording = disguise(recording, b"secret")
        steps = list(replay(recording))
        assert sum(then is not None for _, then, _ in steps) > 200
        for number, then, now in steps:
            assert then == now, f"seed {seed}, turn {number}"


def test_a_replay_notices_another_decision() -> None:
    recording = busy_life(0, 1, ONE_GROUP).dump()
    turn = next(turn for turn in recording.turns if turn.sampled is not None and turn.sampled.rows)
    turn.messages.append((turn.readings[0], Cancel(turn.step.new_rows[0].request_id, None, "deadline")))  # type: ignore[union-attr]
    with pytest.raises((AssertionError, ValueError, StopIteration)):
        assert all(then == now for _, then, now in replay(recording))


def test_the_last_thousand_turns_are_kept() -> None:
    life = Recorded()
    for number in range(MAX_TURNS + 50):
        life.add(f"r{number}", [1, 2, 3], max_tokens=1)
        life.step()
    recording = life.dump()
    assert len(recording.turns) == MAX_TURNS
    assert recording.first_turn > 0
    with pytest.raises(ValueError, match="only one that begins at 0 can be replayed"):
        next(replay(recording))


def test_a_disguised_recording_tells_no_text() -> None:
    life = Recorded()
    secret_words = [41, 42, 43, 44, 45, 46]
    for number in range(3):
        options: dict[str, Any] = {"stop_token_ids": (7,), "logit_bias": {41: 1.0}, "logprobs": 2}
        life.add(f"r{number}", [*secret_words, number], max_tokens=9, **options)
        for _ in range(12):
            if life.core.has_work():
                life.step()
    plain = life.dump()
    hidden = disguise(plain, b"secret")
    adds = [message for turn in hidden.turns for _, message in turn.messages if isinstance(message, Add)]
    found = [token for add in adds for token in unpack_ids(add.prompt_token_ids)]
    rows = [row for turn in hidden.turns if turn.sampled is not None for row in turn.sampled.rows]
    found += [token for row in rows for token in row.token_ids]
    assert min(found) > 50, "a token id of fifty is as it was"
    assert adds[0].params.logit_bias == {}
    assert not any(row.logprobs for row in rows)
    # Equal prefixes stay equal, and what follows a difference is different.
    first, second = (unpack_ids(add.prompt_token_ids) for add in adds[:2])
    assert first[:6] == second[:6]
    assert first[6] != second[6]
    assert unpack_ids(disguise(plain, b"other").turns[0].messages[0][1].prompt_token_ids) != first  # type: ignore[union-attr]


@pytest.mark.parametrize("call", ["forward", "sample", "collect"])
def test_a_call_that_raises_is_played_too(call: str, caplog: pytest.LogCaptureFixture) -> None:
    life = Recorded()
    real = getattr(life.bench.runner, call)
    calls = itertools.count()

    def failing(*arguments: Any) -> Any:
        if next(calls) == 2:
            if call == "collect":
                real()
            raise RuntimeError("planted")
        return real(*arguments)

    setattr(life.bench.runner, call, failing)
    life.add("a", [1, 2, 3], max_tokens=9)
    life.add("b", [4, 5], max_tokens=9)
    for _ in range(4):
        if life.core.has_work():
            life.step()
    recording = life.dump()
    assert [turn.raised for turn in recording.turns if turn.raised] == [call]
    assert all(then == now for _, then, now in replay(recording))


def test_a_dump_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    life = busy_life(1, 1, ONE_GROUP)
    whole = encode(life.recorder.dump("test"))
    monkeypatch.setattr(recorder_module, "MAX_DUMP_BYTES", len(whole) // 3)
    recording = life.dump()
    assert recording.first_turn > 0
    assert recording.first_turn + len(recording.turns) == len(life.recorder.dump("test").turns)


def test_what_is_held_is_told() -> None:
    life = Recorded()
    life.add("a", prompt(10), max_tokens=5, n=2)
    life.add("b", prompt(3, 2), max_tokens=5)
    life.recorder.took(LiveIds(("a", "b")), 1.0)
    for _ in range(2):
        life.step()
    held = {(each.request_id, each.choice): each for each in life.dump().held}
    assert set(held) == {("a", 0), ("a", 1), ("b", 0)}
    assert held["a", 0].status == "running"
    assert len(held["a", 0].block_tables[0]) == 3
    assert isinstance(life.recorder.turn.step, Step)
    assert isinstance(life.recorder.turn.sampled, Sampled)
