"""The pure table: exactly one end for every choice, under any order of events."""

import random
from collections import Counter

import pytest
from support.tokenizers import starter_tokenizer

from quire.engine.detokenizer import Detokenizer
from quire.engine.messages import Add, Cancel, Failure, LiveIds, OutputRow, pack_ids
from quire.engine.request_table import (
    ClientGone,
    Deliver,
    Drain,
    DrainEnded,
    Effect,
    EngineDown,
    EngineFailed,
    EngineKnows,
    EngineUp,
    Event,
    Fail,
    Opened,
    Reconcile,
    RequestTable,
    Rows,
    Send,
    Tick,
)
from quire.engine.sampling_params import SamplingParams

TOKENIZER = starter_tokenizer()
A, B = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]


def opened(name: str, n: int = 1, deadline: float | None = None, stop: tuple[str, ...] = ()) -> Opened:
    params = SamplingParams(n=n, stop=stop, max_tokens=1000)
    detokenizers = tuple(Detokenizer(TOKENIZER, params, [1]) for _ in range(n))
    return Opened(Add(name, pack_ids([1]), params), detokenizers, deadline)


def row(name: str, choice: int = 0, *ids: int, finish: str | None = None) -> OutputRow:
    failure = Failure("internal_error", "x") if finish == "error" else None
    return OutputRow(name, choice, pack_ids(ids or [A]), finish_reason=finish, failure=failure)  # type: ignore[arg-type]


def ready_table(max_queued: int = 2048) -> RequestTable:
    table = RequestTable(max_queued=max_queued)
    assert table.handle(EngineUp(4), 0.0) == []
    return table


def ends(effects: list[Effect]) -> list[tuple[str, int | None, str]]:
    """(request, choice, how it ended) of every effect that ends something."""
    found: list[tuple[str, int | None, str]] = []
    for effect in effects:
        if isinstance(effect, Deliver) and effect.delta.finish_reason is not None:
            found.append((effect.request_id, effect.delta.choice, effect.delta.finish_reason))
        elif isinstance(effect, Fail):
            found.append((effect.request_id, None, effect.failure.code))
    return found


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([], "model_loading"),
        ([EngineUp(4), EngineDown()], "engine_restarting"),
        ([EngineDown("failed")], "engine_failed"),
        ([EngineUp(4), Drain()], "server_draining"),
        ([EngineUp(4), Drain(), EngineDown(), EngineUp(4)], "server_draining"),
    ],
)
def test_who_may_come_in(events: list[Event], code: str) -> None:
    table = RequestTable()
    for event in events:
        table.handle(event, 0.0)
    (refusal,) = table.handle(opened("r"), 0.0)
    assert isinstance(refusal, Fail)
    assert (refusal.failure.code, refusal.failure.status) == (code, 503)
    assert len(table) == table.num_sequences == 0


def test_the_queue_is_bounded_in_sequences() -> None:
    table = ready_table(max_queued=2)
    assert isinstance(table.handle(opened("a", n=5), 0.0)[0], Send)
    assert ends(table.handle(opened("b", n=2), 0.0)) == [("b", None, "server_is_overloaded")]
    assert isinstance(table.handle(opened("c"), 0.0)[0], Send)
    with pytest.raises(ValueError, match="unique"):
        table.handle(opened("a"), 0.0) if table.handle(ClientGone("c"), 0.0) else None


def test_a_stop_string_wins_over_a_later_length_and_late_rows_are_dropped() -> None:
    table = ready_table()
    table.handle(opened("r", n=2, stop=("b",)), 0.0)
    effects = table.handle(Rows((row("r", 0, A, B),)), 0.0)
    assert ends(effects) == [("r", 0, "stop")]
    assert effects[-1] == Send(Cancel("r", 0, "stop_string"))
    assert table.handle(Rows((row("r", 0, A, finish="length"),)), 0.0) == []
    assert ends(table.handle(Rows((row("r", 1, A, finish="length"),)), 0.0)) == [("r", 1, "length")]
    assert table.handle(Rows((row("r", 1, A, finish="stop"), row("nobody"))), 0.0) == []
    assert len(table) == table.num_sequences == 0


def test_a_stop_string_in_the_last_row_needs_no_cancel() -> None:
    table = ready_table()
    table.handle(opened("r", stop=("b",)), 0.0)
    effects = table.handle(Rows((row("r", 0, A, B, finish="length"),)), 0.0)
    assert ends(effects) == [("r", 0, "stop")]
    assert not any(isinstance(effect, Send) for effect in effects)


def test_deadlines_flush_what_is_held_back() -> None:
    table = ready_table()
    table.handle(opened("r", deadline=5.0, stop=("ab",)), 0.0)
    assert table.handle(Rows((row("r"),)), 1.0) == []
    assert table.handle(Tick(), 4.9) == []
    cancel, delivered = table.handle(Tick(), 5.0)
    assert cancel == Send(Cancel("r", None, "deadline"))
    assert isinstance(delivered, Deliver)
    assert (delivered.delta.text, delivered.delta.finish_reason, delivered.last) == ("a", "timeout", True)
    assert table.handle(Tick(), 6.0) == []


def test_reconciling_fails_only_what_the_engine_does_not_know() -> None:
    table = ready_table()
    for name in ("a", "b", "c"):
        table.handle(opened(name), 0.0)
    assert table.handle(Reconcile(), 0.0) == [Send(LiveIds(("a", "b", "c")))]
    table.handle(ClientGone("c"), 0.0)
    effects = table.handle(EngineKnows(frozenset("abc"), frozenset("b")), 0.0)
    assert ends(effects) == [("a", None, "request_lost")]
    assert table.request_ids() == {"b"}


def test_retry_after_follows_the_rate_of_finishing() -> None:
    table = ready_table(max_queued=0)
    for second in range(10):
        for name in ("x", "y"):
            table.handle(opened(name), float(second))
        for name in ("x", "y"):
            table.handle(Rows((row(name, finish="stop"),)), second + 1.0)
    for number in range(4):
        table.handle(opened(f"w{number}"), 10.0)
    (refusal,) = table.handle(opened("late"), 10.0)
    assert isinstance(refusal, Fail)
    assert refusal.retry_after == pytest.approx(2.0, rel=0.2)


def test_those_who_lose_their_engine_come_back_no_faster_than_they_can_be_served() -> None:
    table = ready_table()
    for second in range(10):
        table.handle(opened("x"), float(second))
        table.handle(Rows((row("x", finish="stop"),)), second + 1.0)
    for number in range(20):
        table.handle(opened(f"w{number}"), 10.0)
    effects = table.handle(EngineDown(), 10.0)
    assert len(effects) == 20
    assert all(isinstance(effect, Fail) and 15 <= (effect.retry_after or 0) <= 25 for effect in effects)


def one_event(random_: random.Random, names: list[str], now: float) -> Event:
    name = random_.choice(names)
    choice = random_.randrange(3)
    kinds: list[Event] = [
        Rows((row(name, choice, *random_.choices([A, B], k=random_.randrange(1, 4))),)),
        Rows((row(name, choice, finish=random_.choice(["stop", "length", "aborted", "error"])),)),
        Rows(tuple(row(other, 0) for other in names)),
        ClientGone(name),
        EngineFailed((name,), Failure("internal_error", "x")),
        Tick(),
        Reconcile(),
        EngineKnows(frozenset(names), frozenset(random_.sample(names, len(names) // 2))),
        EngineDown(),
        EngineUp(4),
        EngineFailed(None, Failure("internal_error", "all")),
    ]
    return random_.choices(kinds, weights=[20, 6, 6, 3, 2, 3, 2, 1, 1, 4, 1])[0]


@pytest.mark.parametrize("seed", range(30))
def test_every_choice_ends_exactly_once_whatever_comes(seed: int) -> None:
    random_ = random.Random(seed)
    table = ready_table(max_queued=20)
    sizes: dict[str, int] = {}
    gone: set[str] = set()
    ended: Counter[tuple[str, int | None]] = Counter()
    failed: set[str] = set()
    now = 0.0
    for _ in range(600):
        now += random_.random()
        event: Event
        if random_.random() < 0.15:
            name = f"r{len(sizes)}"
            sizes[name] = random_.randrange(1, 4)
            event = opened(
                name, sizes[name], random_.choice([None, now + 5]), random_.choice([(), ("ab",), ("bb", "a")])
            )
        elif sizes:
            event = one_event(random_, list(sizes)[-6:], now)
        else:
            continue
        if isinstance(event, ClientGone):
            gone.add(event.request_id)
        for effect in table.handle(event, now):
            if isinstance(effect, Deliver):
                assert effect.request_id not in failed
                assert (effect.request_id, effect.delta.choice) not in ended
                ended[effect.request_id, effect.delta.choice] += effect.delta.finish_reason is not None
                ended += Counter()
                done = sum(ended[effect.request_id, choice] for choice in range(3))
                assert effect.last == (done == sizes[effect.request_id])
            elif isinstance(effect, Fail):
                assert effect.request_id not in failed
                failed.add(effect.request_id)
    table.handle(EngineUp(4), now)
    table.handle(Drain(), now)
    for effect in table.handle(DrainEnded(), now):
        if isinstance(effect, Fail):
            failed.add(effect.request_id)
    assert len(table) == table.num_sequences == 0
    for name, size in sizes.items():
        choices = sum(ended[name, choice] for choice in range(size))
        assert name in gone or name in failed or choices == size
        assert not (name in failed and choices == size)
