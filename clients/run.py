"""`quire run [MODEL] [PROMPT]`: serve a model for this one command, and talk to it.

One argument is the model when it is `starter`, a path (./name, /name, ~/name, or a folder with a config.json) or a hub
name (organisation/name). It is the prompt when it cannot be the name of a model. A bare word could be either, and is
refused: say which with --model, or give both. Of two arguments the first is the model. Text piped in is appended to the
prompt. With neither, and a terminal, a conversation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from quire.clients.local_server import STARTER
from quire.clients.servers import Server, ended_by_signals, own
from quire.clients.talk import add_flags, answer_or_converse, joined
from quire.clients.terminal import USAGE, CommandFailed, Parser, piped_text

_PART = r"[A-Za-z0-9][\w.-]*"
_BARE_NAME = re.compile(_PART)
_HUB_NAME = re.compile(f"{_PART}/{_PART}")


def main(command: str, arguments: list[str]) -> int:
    """Run `quire run`; returns the exit code."""
    options = _parser().parse(arguments)
    model, prompt = model_and_prompt(options.words, options.model)
    question = joined(prompt, piped_text())
    if not question and not sys.stdin.isatty():
        raise CommandFailed("quire run: nothing was asked; give PROMPT, or pipe it in", USAGE)
    with ended_by_signals():
        if options.base_url:
            return answer_or_converse(Server(options.base_url, options.api_key, model), options, question)
        with own(model) as server:
            return answer_or_converse(server, options, question)


def model_and_prompt(words: Sequence[str], model: str | None) -> tuple[str | None, str]:
    """Which of the arguments is what. Raises CommandFailed (exit code 2) when that cannot be told."""
    most = 1 if model is not None else 2
    if len(words) > most:
        raise CommandFailed(f"one argument too many: {words[most]}; put the prompt in quotes", USAGE)
    if model is not None or not words:
        return model, "".join(words)
    if len(words) == 2:
        if not (_is_model(words[0]) or _BARE_NAME.fullmatch(words[0])):
            raise CommandFailed(f"the model comes first: {words[0]!r} is none; `quire run MODEL PROMPT`", USAGE)
        return words[0], words[1]
    word = words[0]
    if _is_model(word):
        return word, ""
    if _BARE_NAME.fullmatch(word):
        raise CommandFailed(
            f"{word} could be a model or a prompt; the model: `quire run --model {word}`, the prompt: "
            f"`quire run {STARTER} {word}`",
            USAGE,
        )
    return None, word


def _is_model(word: str) -> bool:
    """Whether a word is a model without doubt."""
    if word == STARTER or _HUB_NAME.fullmatch(word):
        return True
    begins = word in (".", "..", "~") or word.startswith(("./", "../", "/", "~/"))
    return (begins and "\n" not in word) or _holds_model(word)


def _holds_model(word: str) -> bool:
    """Whether a word names a model's folder, or a GGUF file."""
    try:
        return (Path(word) / "config.json").is_file() or (word.lower().endswith(".gguf") and Path(word).is_file())
    except (OSError, ValueError):
        return False


def _parser() -> Parser:
    parser = Parser("run", __doc__, usage="quire run [flags] [MODEL] [PROMPT]")
    parser.add_argument("words", nargs="*", metavar="MODEL PROMPT", help="in this order; see above for one alone")
    parser.add_argument("--model", metavar="NAME", help="the model, so that any argument is the prompt")
    parser.add_argument("--base-url", metavar="URL", help="ask a running server, for MODEL, instead of starting one")
    parser.add_argument("--api-key", metavar="KEY", help="of that server; better given as QUIRE_API_KEY")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_flags(parser)
    return parser
