"""What a conversation keeps: turns, settings, files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted_server import ScriptedServer

from quire.clients import commands
from quire.clients.client import Client
from quire.clients.reply import Talk
from quire.clients.session import SETTINGS, Session

ANSWER = "fine, thanks "


@pytest.fixture
def session(server: ScriptedServer) -> Iterator[Session]:
    with Client(server.url, model="scripted") as client:
        yield Session(Talk(client, {"seed": 7, "top_p": None}, show_statistics=False), "be kind")


def asked(server: ScriptedServer) -> list[list[str]]:
    return [[turn["content"] for turn in body["messages"]] for body in server.bodies]


def test_a_saved_conversation_goes_on_elsewhere(server: ScriptedServer, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session.ask("one")
    commands.run(session, "/set stop END")
    commands.run(session, f"/save {path}")
    assert path.stat().st_mode & 0o777 == 0o600
    body = json.loads(path.read_text())
    assert body == {
        "model": "scripted",
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": ANSWER},
        ],
        "seed": 7,
        "stop": "END",
    }
    other = Session(Talk(session.talk.client, {"temperature": 1.0}, show_statistics=False))
    commands.run(other, f"/load {path}")
    assert (other.system, other.turns, other.talk.fields) == (session.system, session.turns, {"seed": 7, "stop": "END"})
    other.ask("two")
    other.retry()
    commands.run(other, f"/save {path}")
    assert asked(server) == [
        ["be kind", "one"],
        ["be kind", "one", ANSWER, "two"],
        ["be kind", "one", ANSWER, "two"],
    ]
    assert len(json.loads(path.read_text())["messages"]) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_a_loaded_question_without_an_answer_is_asked_by_retry(
    server: ScriptedServer, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    body = {"messages": [{"role": "user", "content": "why?"}], "tools": [], "n": 2, "stream": True}
    path.write_text(json.dumps(body))
    commands.run(session, f"/load {path}")
    assert "0 messages loaded; left out: n, tools" in capsys.readouterr().out
    commands.run(session, "/retry")
    assert asked(server) == [["why?"]]


BAD_FILES: list[tuple[str, str]] = [
    ("{", "not JSON"),
    ("[]", "no conversation; expected an object with a list called messages"),
    ('{"messages": 3}', "no conversation"),
    ('{"messages": [{"role": "user", "content": ["part"]}]}', "messages[0]: expected a role and a content, both text"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES)
def test_a_file_that_is_no_conversation_is_neither_loaded_nor_written_over(
    text: str, sentence: str, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes"
    path.write_text(text)
    session.turns = kept = [{"role": "user", "content": "kept"}]
    commands.run(session, f"/load {path}")
    assert f"/load: {path}: {sentence}" in capsys.readouterr().out
    commands.run(session, f"/save {path}")
    assert "exists and is no saved conversation" in capsys.readouterr().out
    assert (path.read_text(), session.turns) == (text, kept)


def test_files_that_cannot_be(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run(session, f"/load {tmp_path}/none")
    commands.run(session, f"/save {tmp_path}/none/file")
    commands.run(session, "/save")
    out = capsys.readouterr().out
    assert out.count("No such file or directory") == 2
    assert "/save: expected the name of a file" in out
    commands.run(session, f"/save {tmp_path}/{'long' * 99}")
    commands.run(session, f"/save {__file__}/file")
    commands.run(session, "/load ~nobody-of-this-name/file")
    out = capsys.readouterr().out
    assert "File name too long" in out
    assert "Not a directory" in out
    assert "~nobody-of-this-name/file: No such file or directory" in out


SAID: list[tuple[str, str]] = [
    ("/set temperature 0.5", "temperature 0.5"),
    ("/set temperature hot", "/set: temperature: expected a number, found 'hot'"),
    ("/set top_p nan", "/set: top_p: expected a number, found 'nan'"),
    ("/set temprature 1", "unknown setting temprature; did you mean temperature?"),
    ("/set seed", "seed: as the server has it"),
    ("/set stats maybe", "stats: expected on or off"),
    ("/set stats", "figures on"),
    ("/set system", "no system message"),
    ("/exti", "unknown command /exti; did you mean /exit?"),
    ("/", "unknown command /; /help lists them"),
    ("/retry", "nothing to answer again yet"),
    ("/?", "/save FILE"),
]


@pytest.mark.parametrize(("line", "sentence"), SAID)
def test_what_commands_say(line: str, sentence: str, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.is_command(line)
    commands.run(session, line)
    assert sentence in capsys.readouterr().out


def test_show_and_set_list_everything(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run(session, "/show")
    shown = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines()}
    assert shown["system"] == ["be", "kind"]
    assert shown["seed"] == ["7"]
    assert "top_p" not in shown
    commands.run(session, "/set")
    listed = {row.split()[0] for row in capsys.readouterr().out.splitlines()}
    assert listed == {*SETTINGS, "system", "stats"}


@pytest.mark.parametrize("line", ["/bye", "/exit"])
def test_leaving(line: str, session: Session) -> None:
    with pytest.raises(commands.Leave):
        commands.run(session, line)


@pytest.mark.parametrize("line", ["/usr/bin is what?", "and/or", "//", ""])
def test_what_is_no_command(line: str) -> None:
    assert not commands.is_command(line)


def test_a_refusal_leaves_the_conversation_and_says_what_to_do(
    server: ScriptedServer, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.ask("one")
    before = list(session.turns)
    server.refusal = (400, {"message": "too long", "code": "context_length_exceeded"})
    session.ask("two")
    assert session.turns == before
    assert capsys.readouterr().err == "error: too long; /clear forgets the conversation\n"
    server.refusal = None
    session.retry()
    assert asked(server)[-1] == ["be kind", "one", ANSWER, "two"]


def test_an_answer_that_was_cut_off_says_so(
    server: ScriptedServer, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    server.finish_reason = "length"
    session.ask("one")
    assert "/set max_tokens N allows more" in capsys.readouterr().err


def test_settings_reach_the_request(server: ScriptedServer, session: Session) -> None:
    for line in ("/set temperature 0", "/set max_tokens 5", "/set seed"):
        commands.run(session, line)
    session.ask("one")
    body: dict[str, Any] = server.bodies[0]
    assert (body["temperature"], body["max_tokens"], "seed" in body) == (0.0, 5, False)
