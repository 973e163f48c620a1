"""What the commands share on a terminal."""

from __future__ import annotations

import io

import pytest

from quire.clients.terminal import StatusLine


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_status_line_is_written_over_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with StatusLine(screen) as status:
        for text in ("one", "one", "x" * 100):
            status.show(text)
    assert screen.getvalue() == "\r\x1b[Kone" + "\r\x1b[K" + "x" * 79 + "\r\x1b[K"


@pytest.mark.parametrize(("screen", "term"), [(io.StringIO(), "xterm"), (Screen(), "dumb")])
def test_where_it_cannot_be_there_is_none(screen: io.StringIO, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    with StatusLine(screen) as status:
        status.show("one")
    assert screen.getvalue() == ""
