"""What the text side hands to whoever asked for tokens: the HTTP routes, or `LLM`. Torch-free."""

from __future__ import annotations

import msgspec

from quire.engine.messages import CacheReport, Failure, FinishReason, Timings, TokenLogprobs
from quire.engine.sampling_params import SamplingParams


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, checked and tokenized, on its way to the engine."""

    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    salt: bytes = b""
    key_id: str = ""
    weight: float = 1.0
    """Of its key, under the fair policy."""
    deadline: float | None = None
    """Monotonic seconds; past it the request ends with reason `timeout`."""
    request_id: str | None = None
    """32 hex digits that nobody can guess; None: the engine side draws them."""
    timings: bool = False
    """Whether it asks where its time goes."""
    cache_report: bool = False
    """Whether it asks what the prefix cache had of its prompt."""


class TokenText(msgspec.Struct, frozen=True):
    """A token for logprobs answers: its text alone (U+FFFD where it is no whole character) and its raw bytes."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float | None
    """None for the first prompt token."""
    rank: int | None
    top: tuple[TokenText, ...] = ()


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one choice gained since its last delta. The JSON answer is the fold of these; there is one code path.

    The last delta of a choice, and only that one, has a `finish_reason`. `error` carries `failure`.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...]
    num_output_tokens: int
    """Of this choice so far, tokens past a matched stop string not counted."""
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or the stop token id that matched; None for EOS."""
    failure: Failure | None = None
    logprobs: tuple[TokenText, ...] | None = None
    """One a token of `token_ids`, when asked for. Text may lag behind (held back for a stop string or a character)."""
    prompt_logprobs: tuple[TokenText | None, ...] | None = None
    """Whole, on choice 0's first delta, when asked for."""
    queue_seconds: float = 0.0
    timings: Timings | None = None
    """When asked for, on the last delta; `delivered_at` is then the monotonic time at which that could be read."""
    delivered_at: float = 0.0
    cache_report: CacheReport | None = None
    """When asked for, on one delta of any choice."""

    def merge(self, later: TextDelta) -> TextDelta:
        """This delta and a later one of the same choice as one, for a reader that is slower than the engine."""
        logprobs = None
        if self.logprobs is not None or later.logprobs is not None:
            logprobs = (self.logprobs or ()) + (later.logprobs or ())
        return TextDelta(
            choice=self.choice,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            num_output_tokens=later.num_output_tokens,
            num_cached_tokens=max(self.num_cached_tokens, later.num_cached_tokens),
            finish_reason=later.finish_reason,
            stop_reason=later.stop_reason,
            failure=later.failure,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if self.prompt_logprobs is not None else later.prompt_logprobs,
            queue_seconds=max(self.queue_seconds, later.queue_seconds),
            timings=later.timings,
            delivered_at=later.delivered_at,
            cache_report=self.cache_report or later.cache_report,
        )


class RequestFailed(Exception):
    """A request that ended without an answer: engine dead, draining, overloaded, or a fault of this request alone."""

    def __init__(self, failure: Failure, retry_after: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.retry_after = failure, retry_after


__all__ = ["Failure", "GenerateRequest", "RequestFailed", "TextDelta", "TokenLogprobs", "TokenText"]
