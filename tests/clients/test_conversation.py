"""A conversation on a real terminal (a pseudo-terminal), and what it leaves in files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.scripted_server import ScriptedServer
from support.terminal import Terminal

PROMPT = ">>> "
Start = Callable[..., Terminal]


@pytest.fixture
def start(server: ScriptedServer, tmp_path: Path) -> Start:
    """Starts a command on a terminal, with its files below `tmp_path`, and waits for the first prompt."""

    def start(*words: str, columns: int = 80, **variables: str) -> Terminal:
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        environment |= {"XDG_STATE_HOME": str(tmp_path), "PYTHONSAFEPATH": "1", **variables}
        terminal = Terminal([sys.executable, "-m", "quire.clients.cli", *words], environment, columns)
        terminal.wait_for(PROMPT)
        return terminal

    return start


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_a_conversation_as_a_person_has_it(server: ScriptedServer, start: Start, tmp_path: Path) -> None:
    server.answer = "one two three four"
    with start("chat", columns=10, NO_COLOR="1") as terminal:
        terminal.type('"""first line\n')
        terminal.wait_for("... ")
        terminal.type('second line"""\n')
        assert "one two\r\nthree four\r\n\r\n" in terminal.wait_for(PROMPT)
        server.go_on.clear()
        terminal.type("stopped\n")
        terminal.wait_for("one")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        server.go_on.set()
        terminal.type("dropped line\x03")
        terminal.wait_for(PROMPT)
        terminal.type("/usr/bin is what?\n")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.wait_end() == 0
    said = "one two three four "
    assert [contents(body) for body in server.bodies] == [
        ["first line\nsecond line"],
        ["first line\nsecond line", said, "stopped"],
        ["first line\nsecond line", said, "stopped", "one ", "/usr/bin is what?"],
    ]
    assert "\x1b[1m" not in terminal.seen
    assert "\x1b[2m" not in terminal.seen
    history = tmp_path / "quire" / "chat_history"
    assert history.read_text().splitlines()[-2:] == ["stopped", "/usr/bin is what?"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_colours_pasted_lines_completion_and_leaving_by_ctrl_c(server: ScriptedServer, start: Start) -> None:
    with start("run", "--base-url", server.url) as terminal:
        assert "\x1b[1mscripted\x1b[0m" in terminal.seen
        terminal.type("\x1b[200~pasted\ntwo lines\x1b[201~\n")
        terminal.wait_for("fine, thanks")
        terminal.wait_for(PROMPT)
        terminal.type("/se\tsta\ton\n")
        terminal.wait_for("figures on")
        terminal.wait_for(PROMPT)
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for(PROMPT)
        terminal.type("\x03")
        assert terminal.wait_end() == 0
    assert contents(server.bodies[0]) == ["pasted\ntwo lines"]
