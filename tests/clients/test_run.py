"""`quire run`: which argument is what, one answer, and a server that is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.scripted_server import ScriptedServer

from quire.clients import cli
from quire.clients.run import model_and_prompt
from quire.clients.terminal import CommandFailed

TOLD_APART = [
    ([], None, (None, "")),
    (["starter"], None, ("starter", "")),
    (["Qwen/Qwen3-0.6B"], None, ("Qwen/Qwen3-0.6B", "")),
    (["./models/tiny"], None, ("./models/tiny", "")),
    (["~/models/tiny"], None, ("~/models/tiny", "")),
    (["/"], None, ("/", "")),
    (["model"], None, ("model", "")),
    (["What is 17 + 25?"], None, (None, "What is 17 + 25?")),
    (["Hello!"], None, (None, "Hello!")),
    (["你好"], None, (None, "你好")),
    (["gpt2", "hello"], None, ("gpt2", "hello")),
    (["model.gguf"], None, ("model.gguf", "")),
    (["missing.gguf"], "gpt2", ("gpt2", "missing.gguf")),
    (["starter", "starter"], None, ("starter", "starter")),
    (["hello"], "gpt2", ("gpt2", "hello")),
    ([], "gpt2", ("gpt2", "")),
]


@pytest.mark.parametrize(("words", "model", "expected"), TOLD_APART)
def test_model_and_prompt(
    words: list[str],
    model: str | None,
    expected: tuple[str | None, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert model_and_prompt(words, model) == expected


REFUSED = [
    (["gpt2"], None, "gpt2 could be a model or a prompt; the model: `quire run --model gpt2`"),
    (["one", "two", "three"], None, "one argument too many: three; put the prompt in quotes"),
    (["starter", "two"], "gpt2", "one argument too many: two"),
    (["What is it?", "starter"], None, "the model comes first: 'What is it?' is none"),
]


@pytest.mark.parametrize(("words", "model", "sentence"), REFUSED)
def test_what_cannot_be_told_apart(words: list[str], model: str | None, sentence: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        model_and_prompt(words, model)
    assert str(caught.value).startswith(sentence)
    assert caught.value.exit_code == 2


def test_a_running_server_is_asked_for_the_model(
    server: ScriptedServer, piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped("a text\n")
    arguments = ["run", "other/model", "--base-url", server.url, "sum up:", "--system", "be brief", "--seed", "3"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr() == ("fine, thanks \n", "")
    [body] = server.bodies
    assert (body["model"], body["seed"]) == ("other/model", 3)
    assert [turn["content"] for turn in body["messages"]] == ["be brief", "sum up:\n\na text"]


def test_nothing_asked(piped: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    piped("")
    assert cli.main(["run", "starter"]) == 2
    assert capsys.readouterr().err == "error: quire run: nothing was asked; give PROMPT, or pipe it in\n"


def test_piped_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/null", encoding="utf-8") as stdin:

        def read() -> str:
            return b"\xff".decode()

        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr(stdin, "read", read, raising=False)
        assert cli.main(["run", "starter", "sum up:"]) == 2
    assert "stdin: byte 0 is not UTF-8 text" in capsys.readouterr().err
