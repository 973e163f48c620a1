"""The interactive part of `quire chat` and `quire run`: lines in, answers out."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.clients import commands
from quire.clients.reply import Talk
from quire.clients.session import SETTINGS, Session
from quire.clients.terminal import bold, dim

_HISTORY_LINES = 1000
_QUOTES = '"""'


@dataclass(frozen=True)
class Entry:
    """What the user typed, one line or several between quotes."""

    text: str
    is_command: bool


def converse(talk: Talk, system: str) -> int:
    """Answer what is typed until the user leaves; Ctrl-C stops an answer, not the program. Returns the exit code."""
    session = Session(talk, system)
    print(bold(talk.client.model or "") + dim("  /help for help, Ctrl-C stops an answer, Ctrl-D leaves", sys.stdout))
    with _line_editing():
        interrupted = False
        while True:
            try:
                entry = _read()
                interrupted = False
                if entry.is_command:
                    commands.run(session, entry.text)
                elif entry.text:
                    session.ask(entry.text)
            except EOFError:
                print()
                return 0
            except commands.Leave:
                return 0
            except KeyboardInterrupt:
                print()
                empty = not _line_buffer()
                if empty and interrupted:
                    return 0
                interrupted = empty
                if empty:
                    print(dim("Ctrl-C once more leaves, as Ctrl-D and /bye do", sys.stdout))


def _read() -> Entry:
    line = input(">>> ").strip()
    before, quotes, text = line.partition(_QUOTES)
    if not quotes or not (before == "" or before.startswith("/set ")):
        return Entry(line, commands.is_command(line))
    while _QUOTES not in text:
        text += "\n" + input("... ")
    text, _, after = text.partition(_QUOTES)
    return Entry(before + (text + after).strip("\n"), is_command=before != "")


def _line_buffer() -> str:
    """What stood in the line that Ctrl-C dropped."""
    try:
        import readline
    except ImportError:
        return ""
    return readline.get_line_buffer()


@contextmanager
def _line_editing() -> Iterator[None]:
    """Line editing, completion of commands, and a history that lasts, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_completer_delims(" ")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    try:
        path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "quire" / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.chmod(0o600)
        readline.read_history_file(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        print(dim(f"no history of your lines: {error}"), file=sys.stderr)
        yield
        return
    before = readline.get_current_history_length()
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        # Appended, so that two conversations at a time both keep their lines.
        with contextlib.suppress(OSError):
            readline.append_history_file(readline.get_current_history_length() - before, path)


def _complete(text: str, state: int) -> str | None:
    """readline's question: the candidate number `state` for the word under the cursor."""
    import readline

    words = readline.get_line_buffer()[: readline.get_begidx()].split()
    found: list[str] = []
    if not words and text.startswith("/"):
        found = [f"{name} " if command.words else name for name, command in commands.COMMANDS.items()]
    elif words == ["/set"]:
        found = [f"{name} " for name in ("system", "stats", *SETTINGS)]
    elif words in (["/save"], ["/load"]):
        found = glob.glob(f"{glob.escape(text)}*")
    matches = [name for name in found if name.startswith(text)]
    return matches[state] if state < len(matches) else None
