"""Streams cut anywhere give what they give whole."""

from __future__ import annotations

import itertools
import random

import pytest

from quire.benchmarks.stream_parser import EventParser, JsonLineParser, StreamParser

EVENTS = (
    ': keep-alive\n\ndata: {"text":"Z\u00fcrich"}\n\n'
    'event: chunk\r\nid: 7\r\ndata: {"text":"\U0001f642"}\r\n\r\n'
    'data:{"a":1}\r\rdata: {"two":\ndata: 2}\n: glued to a chunk\ndata: [DONE]\n\n'
    "data: without an end"
).encode()
PAYLOADS = [
    '{"text":"Z\u00fcrich"}'.encode(),
    '{"text":"\U0001f642"}'.encode(),
    b'{"a":1}',
    b'{"two":\n2}\n[DONE]',
    b"without an end",
]


def read(parser: StreamParser, pieces: list[bytes]) -> list[bytes]:
    return [payload for piece in pieces for payload in parser.feed(piece)] + list(parser.close())


def test_whole_and_byte_by_byte() -> None:
    assert read(EventParser(), [EVENTS]) == PAYLOADS
    assert read(EventParser(), [bytes([byte]) for byte in EVENTS]) == PAYLOADS


@pytest.mark.parametrize("seed", range(20))
def test_cut_anywhere(seed: int) -> None:
    chooser = random.Random(seed)
    cuts = sorted({0, len(EVENTS), *(chooser.randrange(len(EVENTS)) for _ in range(chooser.randrange(1, 40)))})
    pieces = [EVENTS[start:end] for start, end in itertools.pairwise(cuts)]
    assert read(EventParser(), pieces) == PAYLOADS


def test_an_event_comes_as_soon_as_its_end_has_come() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: one\n")) == []
    assert list(parser.feed(b"\ndata: two")) == [b"one"]
    assert list(parser.feed(b"\r\n\r\n")) == [b"two"]


def test_a_comment_alone_is_no_event() -> None:
    assert read(EventParser(), [b": ping\n\n\n\n: ping\n\n"]) == []


def test_json_lines() -> None:
    data = '{"response":"Z\u00fc"}\n\n{"done":true}\r\n{"rest":1}'.encode()
    expected = ['{"response":"Z\u00fc"}'.encode(), b'{"done":true}', b'{"rest":1}']
    assert read(JsonLineParser(), [data]) == expected
    assert read(JsonLineParser(), [bytes([byte]) for byte in data]) == expected
