"""The interactive part of `quire chat`: lines in, replies out, and commands that begin with a slash."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quire.clients.errors import ClientError
from quire.clients.terminal import bold, dim, nearest

if TYPE_CHECKING:
    from quire.clients.talk import Talk

_HISTORY_LINES = 1000

COMMANDS = {
    "/bye": "leave (so does Ctrl-D)",
    "/clear": "forget the conversation",
    "/system TEXT": "set the system message and forget the conversation",
    "/retry": "answer the last question again",
    "/stats": "show figures after each answer, or stop that",
    "/help": "this list",
}


def converse(talk: Talk, system: list[dict[str, str]]) -> int:
    """Read questions until /bye or the end of input; Ctrl-C stops a reply, not the program. Returns the exit code."""
    _remember_lines()
    print(
        bold(talk.client.model or "") + dim("  /help lists commands, Ctrl-C stops a reply, Ctrl-D leaves", sys.stdout)
    )
    turns: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        word, _, rest = line.partition(" ")
        if word == "/bye":
            return 0
        if word == "/retry" and len(turns) >= 2:
            line = turns[-2]["content"]
            turns = turns[:-2]
        elif line.startswith("/"):
            if word == "/system":
                system = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            if word in ("/clear", "/system"):
                turns = []
            _answer_command(talk, word)
            continue
        if line:
            turns = _ask(talk, system, turns, line)


def _ask(talk: Talk, system: list[dict[str, str]], turns: list[dict[str, str]], line: str) -> list[dict[str, str]]:
    question = {"role": "user", "content": line}
    try:
        reply = talk.chat([*system, *turns, question])
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return turns
    return [*turns, question, {"role": "assistant", "content": reply.text}]


def _answer_command(talk: Talk, word: str) -> None:
    names = [name.split()[0] for name in COMMANDS]
    if word == "/stats":
        talk.show_statistics = not talk.show_statistics
        print(dim(f"figures {'on' if talk.show_statistics else 'off'}", sys.stdout))
    elif word in ("/clear", "/system"):
        print(dim("a new conversation", sys.stdout))
    elif word == "/retry":
        print(dim("nothing to answer again yet", sys.stdout))
    elif word == "/help":
        print("\n".join(f"  {name:<14}{text}" for name, text in COMMANDS.items()))
    else:
        print(f"unknown command {word}{nearest(word, names) or '; /help lists them'}")


def _remember_lines() -> None:
    """Line editing, and a history that lasts, where Python has readline."""
    try:
        import atexit
        import readline
    except ImportError:
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "quire"
    path = folder / "chat_history"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError as error:
        print(dim(f"no history of your lines: {path}: {error.strerror}"), file=sys.stderr)
        return
    readline.set_history_length(_HISTORY_LINES)
    atexit.register(readline.write_history_file, path)
