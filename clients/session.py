"""A conversation: what was said, with what settings, and its file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.clients.errors import ClientError
from quire.clients.reply import Talk
from quire.clients.terminal import CommandFailed, dim, finite

Turn = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """A request field that can be set: how its text is read, and what it is."""

    read: Callable[[str], Any]
    meaning: str


SETTINGS = {
    "temperature": Setting(finite, "0 is greedy"),
    "top_p": Setting(finite, "only the likeliest tokens that sum to this"),
    "top_k": Setting(int, "only this many of the likeliest tokens"),
    "min_p": Setting(finite, "only tokens at least this likely, beside the likeliest"),
    "max_tokens": Setting(int, "limit of an answer"),
    "seed": Setting(int, "the same seed gives the same answer"),
    "stop": Setting(str, "a text that ends an answer"),
    "presence_penalty": Setting(finite, "against tokens that were there"),
    "frequency_penalty": Setting(finite, "against tokens by how often they were there"),
    "repetition_penalty": Setting(finite, "against all that was there, prompt too; 1 is none"),
}


@dataclass
class Session:
    """One conversation with one server. Commands change it; `ask` and `retry` add to it."""

    talk: Talk
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    question: str | None = None
    """The last one, whether or not it was answered."""
    answered: bool = False

    def ask(self, question: str) -> None:
        """Answer on stdout. What fails is said, and leaves the conversation as it was; a stopped answer stays."""
        self.question, self.answered = question, False
        asked = {"role": "user", "content": question}
        try:
            reply = self.talk.chat([*self._system(), *self.turns, asked])
        except ClientError as error:
            hint = "; /clear forgets the conversation" if getattr(error, "code", "") == _TOO_LONG and self.turns else ""
            print(f"error: {error}{hint}", file=sys.stderr)
            return
        if reply.finish_reason == "length":
            print(dim("(cut off by max_tokens or the context; /set max_tokens N allows more)"), file=sys.stderr)
        print()
        if reply.stopped and not reply.text:
            return
        self.turns += [asked, {"role": "assistant", "content": reply.text}]
        self.answered = True

    def retry(self) -> bool:
        """Answer the last question anew; False when there is none."""
        if self.question is None:
            return False
        if self.answered:
            del self.turns[-2:]
        self.ask(self.question)
        return True

    def forget(self) -> None:
        """Begin anew, with the same settings."""
        self.turns, self.question, self.answered = [], None, False

    def set(self, name: str, text: str) -> None:
        """Set one of SETTINGS from text; no text gives it back to the server. Raises CommandFailed."""
        try:
            self.talk.fields[name] = SETTINGS[name].read(text) if text else None
        except ValueError:
            raise CommandFailed(f"{name}: expected a number, found {text!r}") from None

    def save(self, path: Path) -> None:
        """Write a file that is also the body of a chat request, readable by its owner only.

        Raises CommandFailed when it cannot be written, or when the file is something else than a saved conversation.
        """
        if os.path.lexists(path):
            try:
                _read(path)
            except CommandFailed:
                raise CommandFailed(f"{path} exists and is no saved conversation; choose another name") from None
        fields = {name: value for name, value in self.talk.fields.items() if value is not None}
        body = {"model": self.talk.client.model, "messages": [*self._system(), *self.turns], **fields}
        text = json.dumps(body, ensure_ascii=False, indent=2) + "\n"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.touch(mode=0o600)
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise CommandFailed(f"{path}: {error.strerror}") from None

    def load(self, path: Path) -> list[str]:
        """Take up a saved conversation, or any chat request of plain texts, in place of this one.

        Returns the fields that were left out because they cannot be set here. Raises CommandFailed.
        """
        body = _read(path)
        turns: list[Turn] = [{"role": turn["role"], "content": turn["content"]} for turn in body["messages"]]
        self.system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        self.forget()
        self.talk.fields = {name: body[name] for name in SETTINGS if name in body}
        if turns and turns[-1]["role"] == "user":
            self.question = turns.pop()["content"]
        elif len(turns) >= 2 and turns[-2]["role"] == "user":
            self.question, self.answered = turns[-2]["content"], True
        self.turns = turns
        return sorted(set(body) - set(SETTINGS) - {"model", "messages", "stream", "stream_options"})

    def _system(self) -> list[Turn]:
        return [{"role": "system", "content": self.system}] if self.system else []


_TOO_LONG = "context_length_exceeded"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CommandFailed(f"{path}: not JSON ({error})") from None
    turns = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(turns, list):
        raise CommandFailed(f"{path}: no conversation; expected an object with a list called messages")
    for number, turn in enumerate(turns):
        texts = isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))
        if not texts:
            raise CommandFailed(f"{path}: messages[{number}]: expected a role and a content, both text")
    result: Mapping[str, Any] = body
    return result
