"""Lines broken between words, however the text is cut into pieces."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.clients.wrapping import AnswerPrinter, Wrapper, width_of


def wrapped(text: str, columns: int, piece: int = 1) -> str:
    wrapper = Wrapper(lambda: columns)
    pieces = [wrapper.push(text[start : start + piece]) for start in range(0, len(text), piece)]
    return "".join([*pieces, wrapper.finish()])


CASES = {
    "fits": ("one two", "one two"),
    "between words": ("one two three four", "one two\nthree four"),
    "exactly full": ("1234567890 x", "1234567890\nx"),
    "own line ends": ("one\n\ntwo\n", "one\n\ntwo\n"),
    "indented": ("- one\n  two three four", "- one\n  two\nthree four"),
    "a long word": ("a 123456789012345", "a\n1234567890\n12345"),
    "wide characters": ("中文中文中文", "中文中文中\n文"),
    "combining": ("e\u0301e\u0301e\u0301e\u0301e\u0301 12345", "e\u0301e\u0301e\u0301e\u0301e\u0301\n12345"),
    "a fence": ("```py\nif a and b and c:\n```\nif a and b and c", "```py\nif a and b and c:\n```\nif a and b\nand c"),
    "tabs": ("a\tb c", "a\tb\nc"),
}


@pytest.mark.parametrize("piece", [1, 3, 100])
@pytest.mark.parametrize("name", CASES)
def test_lines(name: str, piece: int) -> None:
    text, expected = CASES[name]
    assert wrapped(text, 10, piece) == expected


@settings(max_examples=60)
@given(st.text(alphabet="ab \n中`é", max_size=60), st.integers(2, 12), st.integers(1, 7))
def test_no_character_is_lost_and_no_line_too_long(text: str, columns: int, piece: int) -> None:
    out = wrapped(text, columns, piece)
    assert [c for c in out if not c.isspace()] == [c for c in text if not c.isspace()]
    if "```" not in text:
        assert all(sum(map(width_of, line)) <= columns for line in out.split("\n"))


def test_a_word_is_written_as_soon_as_it_has_ended() -> None:
    wrapper = Wrapper(lambda: 10)
    assert [wrapper.push(piece) for piece in ("he", "llo", " ", "you")] == ["", "", "hello", ""]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [(io.StringIO(), "a\x1b[2Jb\tc\né\x9b\n"), (Screen(), "a\ufffd[2Jb\tc\né\ufffd\n")],
    ids=["pipe", "terminal"],
)
def test_control_characters_reach_pipes_but_no_terminal(stream: io.StringIO, expected: str) -> None:
    printer = AnswerPrinter(stream)
    printer.write("a\x1b[2Jb\tc\né\x9b")
    printer.finish()
    assert stream.getvalue() == expected


def test_a_line_that_has_ended_is_not_ended_again() -> None:
    stream = io.StringIO()
    printer = AnswerPrinter(stream)
    printer.write("done\n")
    printer.finish()
    assert stream.getvalue() == "done\n"
