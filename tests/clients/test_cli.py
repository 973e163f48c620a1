"""The command line against a small scripted server on the loopback interface."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.scripted_server import ScriptedServer

from quire.clients import cli
from quire.clients.client import Client
from quire.clients.reply import Reply, Talk


def test_one_question(server: ScriptedServer, piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    piped("")
    assert (
        cli.main(["chat", "-q", "how are you?", "--system", "be kind", "--max-tokens", "9", "--temperature", "0"]) == 0
    )
    assert capsys.readouterr().out == "fine, thanks \n"
    assert server.bodies == [
        {
            "model": "scripted",
            "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "how are you?"}],
            "max_tokens": 9,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_piped_text_is_appended(server: ScriptedServer, piped: Callable[[str], None]) -> None:
    piped("line one\nline two\n")
    assert cli.main(["chat", "-q", "summarise:"]) == 0
    assert server.bodies[0]["messages"][0]["content"] == "summarise:\n\nline one\nline two"
    piped("alone\n")
    assert cli.main(["complete"]) == 0
    assert server.bodies[1]["prompt"] == "alone"


def test_statistics_go_to_stderr(
    server: ScriptedServer, piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped("")
    assert cli.main(["complete", "once", "--stats", "--model", "other"]) == 0
    out, err = capsys.readouterr()
    assert out == "fine, thanks \n"
    assert err.startswith("5 prompt tokens (0 cached), 2 tokens in ")
    assert "the first after" in err
    assert server.bodies[0]["model"] == "other"


def test_a_refusal_is_one_line_and_exit_1(
    server: ScriptedServer, piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped("")
    server.refusal = (400, {"message": "max_tokens: at most 7", "code": "context_length_exceeded"})
    assert cli.main(["chat", "-q", "hi"]) == 1
    assert capsys.readouterr().err == "error: max_tokens: at most 7\n"


def test_a_server_that_loads_is_waited_for(
    server: ScriptedServer, piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped("")
    server.num_loading = 12
    assert cli.main(["chat", "-q", "hi", "--model", "other"]) == 0
    assert capsys.readouterr() == ("fine, thanks \n", "")
    assert (server.num_loading, server.bodies[0]["model"]) == (0, "other")


USAGE = [
    (["serv"], "unknown command serv; did you mean serve?"),
    (["zzz"], "unknown command zzz; `quire --help` lists the commands"),
    (["chat", "--modle", "x"], "unknown flag --modle; did you mean --model?"),
    (["chat", "one", "two"], "one argument too many: one"),
    (["chat", "--max-tokens", "many"], "argument --max-tokens: invalid int value"),
    (["chat", "--temperature", "nan"], "argument --temperature: invalid finite value"),
    (["chat"], "nothing was asked; give -q QUESTION, or pipe it in"),
    (["complete"], "nothing was asked; give PROMPT, or pipe it in"),
    (["serve", "--prot", "1"], "unknown flag --prot; did you mean --port?"),
    (["serve", "--host", "0.0.0.0"], "--allow-unauthenticated"),
]


@pytest.mark.parametrize(("arguments", "part"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
def test_usage_errors(
    arguments: list[str],
    part: str,
    piped: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QUIRE_API_KEY", raising=False)
    piped("")
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert part in err
    assert err.count("\n") == 1


def test_every_promised_command_is_listed_and_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    page = capsys.readouterr().out
    promised = {"serve", "chat", "complete", "run", "bench", "batch", "plan", "info", "simulate"}
    assert {name for name in promised if f"\n  {name} " in page} == promised == {"serve", *cli.COMMANDS}
    for module in cli.COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert cli.main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("quire 0.")
    assert "--max-model-len" in out


def test_a_traceback_only_with_debug() -> None:
    from quire.engine.errors import UsageError

    with pytest.raises(UsageError):
        cli.main(["serve", "--port", "x", "--debug"])


class Typed:
    """Replaces `input`: gives the lines in order, raises the exceptions among them, then ends the input."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = iter(lines)

    def __call__(self, prompt: str) -> str:
        line = next(self.lines, None)
        if isinstance(line, BaseException):
            raise line
        if line is None:
            raise EOFError
        return line


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs `quire chat` with typed lines."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def chat(*lines: str | BaseException) -> int:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", Typed(*lines))
        return cli.main(["chat"])

    return chat


def contents(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_a_conversation(server: ScriptedServer, terminal: Callable[..., int]) -> None:
    assert (
        terminal("one", "", KeyboardInterrupt(), "two", "/retry", "/clear", "/set system brief", "three", "/bye") == 0
    )
    answer = "fine, thanks "
    assert [contents(body) for body in server.bodies] == [
        ["one"],
        ["one", answer, "two"],
        ["one", answer, "two"],
        ["brief", "three"],
    ]


def test_several_lines_between_quotes(server: ScriptedServer, terminal: Callable[..., int]) -> None:
    quoted = ['"""one', "", 'two"""', '/set system """be', 'brief"""', '"""in one"""', 'say """ twice', '"""dropped']
    assert terminal(*quoted, KeyboardInterrupt(), "last") == 0
    assert contents(server.bodies[0]) == ["one\n\ntwo"]
    asked = [text for text in contents(server.bodies[-1]) if text != "fine, thanks "]
    assert asked == ["be\nbrief", "one\n\ntwo", "in one", 'say """ twice', "last"]


def test_two_ctrl_c_on_empty_lines_leave(server: ScriptedServer, terminal: Callable[..., int]) -> None:
    ctrl_c = KeyboardInterrupt()
    assert terminal(ctrl_c, "one", ctrl_c, ctrl_c, "never asked") == 0
    assert [contents(body) for body in server.bodies] == [["one"]]


def test_a_refusal_does_not_end_a_conversation(
    server: ScriptedServer, terminal: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusal = (400, {"message": "no"})
    assert terminal("one", "/hlep", "/set stats", "/help") == 0
    out, err = capsys.readouterr()
    assert err == "error: no\n"
    assert "unknown command /hlep; did you mean /help?" in out
    assert "forget the conversation" in out


def test_the_lines_are_remembered_for_their_owner_only(
    server: ScriptedServer, terminal: Callable[..., int], tmp_path: Path
) -> None:
    assert terminal("/bye") == 0
    path = tmp_path / "quire" / "chat_history"
    assert path.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_the_reply_and_keeps_what_came(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.StringIO.write

    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if text == "thanks ":
                raise KeyboardInterrupt
            return written(self, text)

    out = Interrupted()
    monkeypatch.setattr("sys.stdout", out)
    with Client(server.url) as client:
        reply = Talk(client, {}, show_statistics=True).chat([{"role": "user", "content": "hi"}])
    assert reply.stopped
    assert reply.text == "fine, thanks "
    assert out.getvalue() == "fine, \n"
    assert capsys.readouterr().err == ""


def test_statistics_of_a_reply() -> None:
    reply = Reply(asked=10.0, first=10.5, ended=12.5)
    assert reply.statistics() == "0 prompt tokens (0 cached), 0 tokens in 2.50 s, the first after 0.500 s"


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "quire.clients.cli", "serve", "--help"]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (run.returncode, run.stderr) == (141, "")
