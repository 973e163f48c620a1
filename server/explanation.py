"""The object `quire` of an answer: where its time went, and what the prefix cache had of its prompt.

A call's time is cut where one clock was read, in this process and in the engine's (both read the machine's monotonic
clock), so the parts add up to the whole:

    arrival ── body read ── sent ── ... the engine's ledger ... ── last row ── delivered ── taken
       client_ms      text_ms    queue_ms .. sampling_ms              text_ms      client_ms

Of several choices or prompts the one that ended last is told of: it decided how long the call took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from quire.engine.messages import CacheReport, Delay, MissReason, Timings
from quire.engine.outputs import TextDelta
from quire.server.answers import (
    CacheReportAnswer,
    ChatChunk,
    Completion,
    DelayAnswer,
    Divergence,
    QuireAnswer,
    TimingsAnswer,
)
from quire.server.request_options import RequestOptions
from quire.server.text_work import Tokenizer

ANOTHER_KEY = "another key's request"
ID_CHARACTERS = 8
"""Of a request's id that name it: those after chatcmpl- or cmpl-."""
TOKENS_BEFORE, TOKENS_AFTER = 16, 8
"""Shown around the first token that differs."""

_MESSAGES: dict[MissReason, str] = {
    "diverged": "The prompt is like a cached one for {position} tokens; there it has {text}, that one {cached_text}.",
    "evicted": "What {place} was cached, and has been evicted to make room.",
    "never_seen": "No cached prompt has what {place}.",
    "salt": "The prompt's first block is cached under another cache_salt of the same API key.",
    "not_full_block": "All that can be is from the cache: only whole blocks of {block_size} tokens are kept.",
    "last_token": "All that can be is from the cache: the block with the prompt's last token is always computed.",
    "prompt_logprobs": "A request for prompt_logprobs computes every token itself.",
    "disabled": "This server runs without a prefix cache.",
}


class Arrival(NamedTuple):
    """When a call came, and when its body had been read: seconds of the monotonic clock."""

    at: float
    body_read: float


class Explanation:
    """Gathers, while the deltas of a call pass, what the call asked to be told. `num_choices` over all its prompts."""

    def __init__(
        self,
        options: RequestOptions,
        arrival: Arrival,
        clock: Callable[[], float],
        num_choices: int,
        prompt_token_ids: Sequence[int],
        tokenizer: Tokenizer,
    ) -> None:
        self._arrival, self._clock, self._open = arrival, clock, num_choices
        self._asked = options.timings or options.cache_report
        self._waits_for_usage = options.stream and options.include_usage
        self._prompt_token_ids, self._tokenizer = prompt_token_ids, tokenizer
        self._last: TextDelta | None = None
        self._report: CacheReport | None = None

    def take(self, delta: TextDelta, chunks: Sequence[msgspec.Struct]) -> None:
        """A delta, and the chunks it made; the last of them all tells, unless a chunk for the usage will follow."""
        if not self._asked:
            return
        self._report = delta.cache_report or self._report
        if delta.finish_reason is not None:
            self._open -= 1
            self._last = delta
            if self._open == 0 and not self._waits_for_usage:
                self._tell(chunks)

    def close(self, chunks: Sequence[msgspec.Struct]) -> None:
        """The chunks after the last delta."""
        if self._asked and self._waits_for_usage:
            self._tell(chunks)

    def _tell(self, chunks: Sequence[msgspec.Struct]) -> None:
        last = chunks[-1]
        assert isinstance(last, ChatChunk | Completion)
        last.quire = answer = QuireAnswer()
        if self._last is not None and self._last.timings is not None:
            answer.timings = _timings(self._arrival, self._last.timings, self._last.delivered_at, self._clock())
        if self._report is not None:
            answer.cache_report = _cache_report(self._report, self._prompt_token_ids, self._tokenizer)


def _timings(arrival: Arrival, engine: Timings, delivered: float, taken: float) -> TimingsAnswer:
    """Milliseconds to the microsecond. `total_ms` is read from this process's clock alone, not added up."""
    parts = {
        "queue_ms": engine.queue / 1e6,
        "prefill_ms": engine.prefill / 1e6,
        "others_prefill_ms": engine.others_prefill / 1e6,
        "decode_ms": engine.decode / 1e6,
        "preempted_ms": engine.preempted / 1e6,
        "sampling_ms": engine.sampling / 1e6,
        "text_ms": 1e3 * (engine.began - arrival.body_read + delivered - engine.ended),
        "client_ms": 1e3 * (arrival.body_read - arrival.at + taken - delivered),
    }
    parts = {name: round(part, 3) for name, part in parts.items()}
    delays = [_delay(delay) for delay in engine.delayed_by]
    return TimingsAnswer(**parts, total_ms=round(1e3 * (taken - arrival.at), 3), delayed_by=delays)


def _delay(delay: Delay) -> DelayAnswer:
    name = ANOTHER_KEY if delay.request_id is None else delay.request_id[:ID_CHARACTERS]
    return DelayAnswer(name, round(delay.nanoseconds / 1e6, 3))


def _cache_report(report: CacheReport, prompt: Sequence[int], tokenizer: Tokenizer) -> CacheReportAnswer:
    divergence = None
    if report.neighbour_token_ids:
        divergence = _divergence(report.position, prompt, report.neighbour_token_ids, tokenizer)
    message = _MESSAGES[report.reason].format(
        position=report.position,
        place=f"comes after token {report.position}" if report.position else "this prompt begins with",
        block_size=report.block_size,
        text=repr(divergence.text) if divergence else "",
        cached_text=repr(divergence.cached_text) if divergence else "",
    )
    return CacheReportAnswer(
        prompt_tokens=report.num_prompt_tokens,
        cached_tokens=report.num_cached_tokens,
        missed_tokens=report.num_prompt_tokens - report.num_cached_tokens,
        block_size=report.block_size,
        reason=report.reason,
        message=message,
        divergence=UNSET if divergence is None else divergence,
    )


def _divergence(position: int, prompt: Sequence[int], cached: Sequence[int], tokenizer: Tokenizer) -> Divergence:
    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False)

    end = position + min(len(cached), 1 + TOKENS_AFTER)
    return Divergence(
        position=position,
        before=text(prompt[max(0, position - TOKENS_BEFORE) : position]),
        token_id=prompt[position],
        text=tokenizer.token_text(prompt[position]),
        after=text(prompt[position + 1 : end]),
        cached_token_id=cached[0],
        cached_text=tokenizer.token_text(cached[0]),
        cached_after=text(cached[1 : end - position]),
    )
