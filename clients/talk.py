"""`quire chat` and `quire complete`: one answer, or a conversation, streamed to the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from quire.clients.conversation import converse
from quire.clients.reply import Reply, Talk
from quire.clients.servers import Server, ended_by_signals, running_or_own
from quire.clients.terminal import USAGE, CommandFailed, Parser, add_server_flags, finite, piped_text

FIELDS = ("max_tokens", "temperature", "top_p", "seed")
"""The request fields that have a flag."""


def main(command: str, arguments: list[str]) -> int:
    """Run `quire chat` or `quire complete`; returns the exit code."""
    options = _parser(command).parse(arguments)
    asked = options.prompt if command == "complete" else options.question
    question = joined(asked, piped_text())
    if not question and (command == "complete" or not sys.stdin.isatty()):
        what = "PROMPT" if command == "complete" else "-q QUESTION"
        raise CommandFailed(f"quire {command}: nothing was asked; give {what}, or pipe it in", USAGE)
    with ended_by_signals(), running_or_own(options.base_url, options.api_key, options.model) as server:
        if command == "chat":
            return answer_or_converse(server, options, question)
        with server.client() as client:
            return exit_code(Talk(client, fields(options), options.stats).complete(question))


def joined(asked: str | None, piped: str) -> str:
    """What was asked, with what was piped in under it."""
    return "\n\n".join(part for part in (asked, piped) if part)


def answer_or_converse(server: Server, options: argparse.Namespace, question: str) -> int:
    """Answer the question, or talk until the user leaves when there is none; returns the exit code."""
    with server.client() as client:
        talk = Talk(client, fields(options), options.stats)
        if not question:
            return converse(talk, options.system or "")
        system = [{"role": "system", "content": options.system}] if options.system else []
        return exit_code(talk.chat([*system, {"role": "user", "content": question}]))


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """The request fields among the flags."""
    return {name: getattr(options, name) for name in FIELDS}


def exit_code(reply: Reply) -> int:
    """130, as of any program that Ctrl-C stopped, or 0."""
    return 130 if reply.stopped else 0


def add_flags(parser: Parser) -> None:
    """The flags that every command has which asks for an answer."""
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit of an answer [the server's]")
    parser.add_argument("--temperature", type=finite, metavar="T", help="0 is greedy [the model's]")
    parser.add_argument("--top-p", type=finite, metavar="P", help="nucleus sampling [the model's]")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stats", action="store_true", help="tokens, time to the first, tokens a second, on stderr")


def _parser(command: str) -> Parser:
    parser = Parser(command, __doc__)
    if command == "complete":
        parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue; piped text is appended")
    else:
        parser.add_argument("-q", "--question", metavar="TEXT", help="ask one question; piped text is appended")
        parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_server_flags(parser)
    parser.add_argument("--model", metavar="NAME", help="what to ask for, or to serve where no server runs")
    add_flags(parser)
    return parser
