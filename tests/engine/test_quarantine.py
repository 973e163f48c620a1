"""Who is suspected after an engine's death, who is refused, and that nobody else is (F07)."""

from __future__ import annotations

import random

import msgspec
from support.tokenizers import starter_tokenizer

from quire.engine.detokenizer import Detokenizer
from quire.engine.messages import Add, OutputRow, pack_ids
from quire.engine.quarantine import MARGIN_TOKENS, MAX_REMEMBERED, QUARANTINE_SECONDS
from quire.engine.request_table import Effect, EngineDown, EngineUp, Fail, Opened, RequestTable, Rows, Send
from quire.engine.sampling_params import SamplingParams

TOKENIZER = starter_tokenizer()


def add(name: str, *prompt: int, key_id: str = "", **params: int) -> Add:
    return Add(name, pack_ids(prompt), SamplingParams(max_tokens=1000, **params), key_id=key_id)  # type: ignore[arg-type]


class Table:
    """A table and an engine that is up."""

    def __init__(self) -> None:
        self.table = RequestTable()
        self.table.handle(EngineUp(64), 0.0)

    def open(self, request: Add, now: float = 0.0) -> Effect:
        (effect,) = self.table.handle(Opened(request, (Detokenizer(TOKENIZER, request.params, [1]),)), now)
        return effect

    def down(self, *suspects: str, now: float = 0.0) -> dict[str, str]:
        """The engine dies and comes back; request -> the code it failed with."""
        effects = self.table.handle(EngineDown(suspects=suspects), now)
        self.table.handle(EngineUp(64), now)
        return {effect.request_id: effect.failure.code for effect in effects if isinstance(effect, Fail)}


def alone(effect: Effect) -> int:
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Add)
    return effect.message.alone


def refused(effect: Effect) -> bool:
    return isinstance(effect, Fail) and effect.failure.code == "request_quarantined"


def test_a_request_that_kills_twice_is_refused_and_its_neighbours_are_not() -> None:
    side = Table()
    bad, good = add("bad", 1, 2, 3), add("good", 4, 5)
    assert alone(side.open(bad)) == alone(side.open(good)) == 0
    assert side.down("bad", "good") == {"bad": "engine_restarting", "good": "engine_restarting"}
    # The same request under another id and seed, as a client's library sends it again.
    again = msgspec.structs.replace(bad, request_id="again", params=msgspec.structs.replace(bad.params, seed=9))
    assert alone(side.open(again)) == MARGIN_TOKENS
    assert alone(side.open(msgspec.structs.replace(good, request_id="good again"))) == MARGIN_TOKENS
    assert side.down("again") == {"again": "request_quarantined", "good again": "engine_restarting"}
    for number in range(8):
        assert refused(side.open(msgspec.structs.replace(bad, request_id=f"bad {number}"), now=number))
    assert not refused(side.open(msgspec.structs.replace(good, request_id="good at last")))
    assert side.table.quarantine.num_convicted == 1


def test_kills_from_outside_make_no_suspects() -> None:
    side = Table()
    for number in range(5):
        assert alone(side.open(add(f"{number}", 7))) == 0
        side.down()
    assert len(side.table.quarantine) == 0


def test_a_suspect_stays_alone_until_it_is_past_the_place() -> None:
    side = Table()
    side.open(add("a", 7))
    for token in TOKENIZER.encode("five tokens and some more", add_special_tokens=False)[:5]:
        side.table.handle(Rows((OutputRow("a", 0, pack_ids([token])),)), 0.0)
    side.down("a", "b")
    assert alone(side.open(add("a2", 7))) == 5 + MARGIN_TOKENS


def test_two_deaths_in_company_convict_nobody() -> None:
    side = Table()
    for number in range(4):
        assert not refused(side.open(add(f"a{number}", 7)))
        side.open(add(f"b{number}", 8))
        # Also when the other one's client has left meanwhile: the step held two.
        side.down(f"a{number}", "somebody who left")
    assert side.table.quarantine.num_convicted == 0


def test_everything_but_the_seed_tells_requests_apart() -> None:
    side = Table()
    side.open(add("a", 7))
    side.down("a")
    others = [add("b", 8), add("c", 7, 7), add("d", 7, key_id="alice"), add("e", 7, top_k=3)]
    assert [alone(side.open(other)) for other in others] == [0, 0, 0, 0]
    assert alone(side.open(add("f", 7, seed=3))) == MARGIN_TOKENS


def test_ten_minutes_and_it_is_forgotten() -> None:
    side = Table()
    for name in ("a", "b"):
        side.open(add(name, 7))
        side.down(name)
    assert refused(side.open(add("c", 7), now=QUARANTINE_SECONDS - 1))
    assert alone(side.open(add("d", 7), now=QUARANTINE_SECONDS)) == 0


def test_what_is_remembered_is_bounded() -> None:
    side, choice = Table(), random.Random(5)
    for number in range(70):
        names = [f"{number}/{index}" for index in range(64)]
        for name in names:
            side.open(add(name, choice.randrange(10**9), choice.randrange(10**9)))
        side.down(*names)
    assert len(side.table.quarantine) == MAX_REMEMBERED
