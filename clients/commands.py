"""What a line that begins with a slash does in a conversation."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.clients.session import SETTINGS, Session
from quire.clients.terminal import CommandFailed, dim, nearest

_SWITCH = {"": True, "on": True, "off": False}
_ALIASES = {"/?": "/help", "/exit": "/bye"}


@dataclass(frozen=True)
class Command:
    """How a command is written after its name, what it does, and the function that does it and says so."""

    words: str
    meaning: str
    run: Callable[[Session, str], None]


class Leave(Exception):
    """Ends the conversation."""


def is_command(line: str) -> bool:
    """Whether a line is a command, right or wrong; `/usr/bin is what?` is a question."""
    return re.match(r"/[\w?-]*(\s|$)", line) is not None


def run(session: Session, line: str) -> None:
    """Do what the line says. Raises Leave."""
    word, _, rest = line.partition(" ")
    word = _ALIASES.get(word, word)
    if word not in COMMANDS:
        print(f"unknown command {word}{nearest(word, [*COMMANDS, '/exit']) or '; /help lists them'}")
        return
    try:
        COMMANDS[word].run(session, rest.strip())
    except CommandFailed as error:
        print(f"{word}: {error}")


def _say(text: str) -> None:
    print(dim(text, sys.stdout))


def _list(rows: list[tuple[str, str]]) -> None:
    wide = max(len(name) for name, _ in rows) + 2
    print("\n".join(f"  {name:<{wide}}{text}" for name, text in rows))


def _set(session: Session, rest: str) -> None:
    name, _, value = rest.partition(" ")
    value = value.strip()
    if not name:
        _list([*((name, setting.meaning) for name, setting in SETTINGS.items()), *_OTHERS.items()])
    elif name == "system":
        session.system = value
        _say("system message set; it holds from the next question on" if value else "no system message")
    elif name == "stats":
        if value not in _SWITCH:
            raise CommandFailed(f"stats: expected on or off, found {value!r}")
        session.talk.show_statistics = _SWITCH[value]
        _say(f"figures {'on' if _SWITCH[value] else 'off'}")
    elif name not in SETTINGS:
        raise CommandFailed(f"unknown setting {name}{nearest(name, [*SETTINGS, *_OTHERS]) or '; /set lists them'}")
    else:
        session.set(name, value)
        _say(f"{name} {value}" if value else f"{name}: as the server has it")


_OTHERS = {"system": "the system message", "stats": "on or off: figures after each answer"}


def _show(session: Session, rest: str) -> None:
    client, fields = session.talk.client, session.talk.fields
    rows = [("model", client.model or ""), ("server", client.base_url), ("system", session.system or "none")]
    rows += [(name, str(value)) for name, value in fields.items() if value is not None]
    rows.append(("stats", "on" if session.talk.show_statistics else "off"))
    rows.append(("conversation", f"{len(session.turns)} messages"))
    _list(rows)


def _clear(session: Session, rest: str) -> None:
    session.forget()
    _say("a new conversation")


def _save(session: Session, rest: str) -> None:
    session.save(_path(rest))
    _say(f"{len(session.turns)} messages saved")


def _load(session: Session, rest: str) -> None:
    left_out = session.load(_path(rest))
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    _say(f"{len(session.turns)} messages loaded{without}")


def _retry(session: Session, rest: str) -> None:
    if not session.retry():
        _say("nothing to answer again yet")


def _help(session: Session, rest: str) -> None:
    rows = [(f"{name} {command.words}".rstrip(), command.meaning) for name, command in COMMANDS.items()]
    rows += [('"""', "begins and ends a text of several lines")]
    rows += [("Ctrl-C", "stops an answer, or drops the line"), ("Ctrl-D", "leaves")]
    _list(rows)


def _bye(session: Session, rest: str) -> None:
    raise Leave


def _path(text: str) -> Path:
    if not text:
        raise CommandFailed("expected the name of a file")
    return Path(os.path.expanduser(text))


COMMANDS = {
    "/set": Command("NAME VALUE", "system, temperature, max_tokens, seed, stats, ...; /set lists all", _set),
    "/show": Command("", "the model and the settings", _show),
    "/clear": Command("", "forget the conversation", _clear),
    "/retry": Command("", "answer the last question again", _retry),
    "/save": Command("FILE", "keep the conversation", _save),
    "/load": Command("FILE", "take up a conversation that was kept", _load),
    "/help": Command("", "this list", _help),
    "/bye": Command("", "leave", _bye),
}
