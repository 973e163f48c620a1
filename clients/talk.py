"""`quire chat` and `quire complete`: one answer, or a conversation, streamed to the terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from quire.clients import protocol
from quire.clients.client import Client, Stream
from quire.clients.conversation import converse
from quire.clients.errors import ClientError, ConnectionFailed
from quire.clients.local_server import LocalServer
from quire.clients.terminal import USAGE, CommandFailed, Parser, dim, printable
from quire.clients.transport import is_local
from quire.clients.types import Usage


@dataclass
class Reply:
    """A streamed answer on its way to stdout. Times are monotonic seconds."""

    asked: float
    first: float | None = None
    ended: float = 0.0
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    stopped: bool = False

    def statistics(self) -> str:
        """Counts, the time to the first token, and tokens a second after it; one line."""
        out = self.usage.completion_tokens
        line = f"{self.usage.prompt_tokens} prompt tokens ({self.usage.cached_tokens} cached), "
        line += f"{out} tokens in {self.ended - self.asked:.2f} s"
        if self.first is None:
            return line
        line += f", the first after {self.first - self.asked:.3f} s"
        later = self.ended - self.first
        return line + f", then {(out - 1) / later:.1f} tokens/s" if out > 1 and later > 0.0 else line


class Talk:
    """One server, and the fields that every request carries."""

    def __init__(self, client: Client, fields: Mapping[str, Any], show_statistics: bool) -> None:
        self.client, self.fields, self.show_statistics = client, fields, show_statistics

    def chat(self, messages: list[dict[str, str]]) -> Reply:
        """Answer a conversation on stdout."""
        return self._show(lambda: self.client.chat(messages, stream=True, **self._fields()))

    def complete(self, prompt: str) -> Reply:
        """Continue a text on stdout."""
        return self._show(lambda: self.client.complete(prompt, stream=True, **self._fields()))

    def _fields(self) -> Any:
        return {name: value for name, value in self.fields.items() if value is not None}

    def _show(self, ask: Callable[[], Stream]) -> Reply:
        reply = Reply(asked=time.monotonic())
        try:
            with ask() as stream:
                for delta in stream:
                    if delta.usage is not None:
                        reply.usage = delta.usage
                    if delta.text:
                        reply.first = reply.first or time.monotonic()
                        reply.text += delta.text
                        print(printable(delta.text, sys.stdout), end="", flush=True)
        except KeyboardInterrupt:
            reply.stopped = True
        reply.ended = time.monotonic()
        if not reply.text.endswith("\n"):
            print(flush=True)
        if self.show_statistics and not reply.stopped:
            print(dim(reply.statistics()), file=sys.stderr)
        return reply


def main(command: str, arguments: list[str]) -> int:
    """Run `quire chat` or `quire complete`; returns the exit code."""
    options = _parser(command).parse(arguments)
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    asked = options.prompt if command == "complete" else options.question
    question = "\n\n".join(part for part in (asked, piped) if part)
    if not question and (command == "complete" or not sys.stdin.isatty()):
        what = "PROMPT" if command == "complete" else "-q QUESTION"
        raise CommandFailed(f"quire {command}: nothing was asked; give {what}, or pipe it in", USAGE)
    names = ("max_tokens", "temperature", "top_p", "seed")
    fields = {name: getattr(options, name) for name in names}
    with _ended_by_signals(), _server(options.base_url, options.api_key, options.model) as client:
        # Asked here, so that no answer's clock counts it.
        client.model = client.model or protocol.first_model(client.models())
        talk = Talk(client, fields, options.stats)
        if command == "complete":
            return _exit_code(talk.complete(question))
        system = [{"role": "system", "content": options.system}] if options.system else []
        if question:
            return _exit_code(talk.chat([*system, {"role": "user", "content": question}]))
        return converse(talk, system)


def _exit_code(reply: Reply) -> int:
    return 130 if reply.stopped else 0


def _parser(command: str) -> Parser:
    parser = Parser(prog=f"quire {command}", description=f"{__doc__}", allow_abbrev=False)
    if command == "complete":
        parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue; piped text is appended")
    else:
        parser.add_argument("-q", "--question", metavar="TEXT", help="ask one question; piped text is appended")
        parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--base-url", metavar="URL", help="a running server [QUIRE_BASE_URL, OPENAI_BASE_URL, port 8000]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="better given as QUIRE_API_KEY or OPENAI_API_KEY")
    parser.add_argument("--model", metavar="NAME", help="what to ask for, or to serve where no server runs")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit of an answer [the server's]")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy [the model's]")
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling [the model's]")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stats", action="store_true", help="tokens, time to the first, tokens a second, on stderr")
    parser.add_argument("--debug", action="store_true", help="tracebacks instead of one line")
    return parser


@contextmanager
def _server(base_url: str | None, api_key: str | None, model: str | None) -> Iterator[Client]:
    """A client of the server at the address, or of one of our own when this machine has none there."""
    url = protocol.base_url(base_url, os.environ)
    with Client(url, api_key=api_key, max_retries=0) as client:
        try:
            client.version()
            running = True
        except ConnectionFailed:
            if not is_local(url):
                raise
            running = False
        except ClientError:
            running = True
    if running:
        with Client(url, api_key=api_key, model=model, max_retries=5) as client:
            yield client
        return
    print(dim(f"no server at {url}: starting one with {model or 'the starter model'} ..."), file=sys.stderr)
    with LocalServer(model) as server:
        server.wait_ready()
        with Client(server.url) as client:
            yield client


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the `with` blocks, so that no server of ours stays behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
