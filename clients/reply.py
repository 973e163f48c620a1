"""One answer, streamed to stdout and measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.clients.client import Client, Stream
from quire.clients.terminal import dim
from quire.clients.types import Usage
from quire.clients.wrapping import AnswerPrinter


@dataclass
class Reply:
    """A streamed answer on its way to stdout. Times are monotonic seconds."""

    asked: float
    first: float | None = None
    ended: float = 0.0
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
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
    """One server, and the request fields that every question carries; a field that is None is left out."""

    def __init__(self, client: Client, fields: Mapping[str, Any], show_statistics: bool) -> None:
        self.client, self.fields, self.show_statistics = client, dict(fields), show_statistics

    def chat(self, messages: list[dict[str, str]]) -> Reply:
        """Answer a conversation on stdout. Ctrl-C stops the answer."""
        return self._show(lambda: self.client.chat(messages, stream=True, **self._fields()))

    def complete(self, prompt: str) -> Reply:
        """Continue a text on stdout. Ctrl-C stops it."""
        return self._show(lambda: self.client.complete(prompt, stream=True, **self._fields()))

    def _fields(self) -> Any:
        return {name: value for name, value in self.fields.items() if value is not None}

    def _show(self, ask: Callable[[], Stream]) -> Reply:
        reply = Reply(asked=time.monotonic())
        printer = AnswerPrinter(sys.stdout)
        try:
            with ask() as stream:
                _print(stream, reply, printer)
        except KeyboardInterrupt:
            reply.stopped = True
        except Exception:
            if reply.text:
                printer.finish()
            raise
        reply.ended = time.monotonic()
        printer.finish()
        if self.show_statistics and not reply.stopped:
            print(dim(reply.statistics()), file=sys.stderr)
        return reply


def _print(stream: Stream, reply: Reply, printer: AnswerPrinter) -> None:
    for delta in stream:
        if delta.usage is not None:
            reply.usage = delta.usage
        reply.finish_reason = delta.finish_reason or reply.finish_reason
        if delta.text:
            reply.first = reply.first or time.monotonic()
            reply.text += delta.text
            printer.write(delta.text)
