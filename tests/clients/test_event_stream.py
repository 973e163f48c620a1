"""Streams cut anywhere give what they give whole."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quire.clients.event_stream import JsonLines, ServerSentEvents

STREAM = (
    "\ufeff: keep-alive\n\ndata: one\n\ndata:two\r\n\r\ndata:  three\rdata: and more\r\revent: chunk\nid: 7\n\n"
    "data\n\n: ping\n\n\n\ndata: Z\u00fcrich \U0001f642\n: glued to a chunk\ndata: [DONE]\n\ndata: without an end"
).encode()
EVENTS = [b"one", b"two", b" three\nand more", b"", "Z\u00fcrich \U0001f642\n[DONE]".encode()]
OBJECTS = '{"response":"Z\u00fc"}\n\n{"done":true}\r\n{"rest":1}'.encode()


def read(parser: ServerSentEvents | JsonLines, pieces: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What the stream holds, and what it leaves without an end."""
    return [found for piece in pieces for found in parser.feed(piece)], parser.close()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_the_chunks(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(borders)]
    assert read(ServerSentEvents(), pieces) == (EVENTS, [b"without an end"])


def test_single_bytes() -> None:
    assert read(ServerSentEvents(), [bytes([byte]) for byte in STREAM]) == (EVENTS, [b"without an end"])
    expected = ['{"response":"Z\u00fc"}'.encode(), b'{"done":true}'], [b'{"rest":1}']
    assert read(JsonLines(), [OBJECTS]) == read(JsonLines(), [bytes([byte]) for byte in OBJECTS]) == expected


def test_an_event_comes_as_soon_as_its_end_has_come() -> None:
    parser = ServerSentEvents()
    assert parser.feed(b"data: one\n") == []
    assert parser.feed(b"\ndata: two") == [b"one"]
    assert parser.feed(b"\r\n\r") == [b"two"]
    assert parser.feed(b"\n") == parser.close() == []
