"""The objects of the API's answers. Fields that are UNSET are left out of the JSON."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class CachedTokens(Struct, frozen=True):
    """How much of the prompt came from the prefix cache."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of one call: prompts counted once each, outputs of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PromptToken(Struct, frozen=True):
    """One alternative at a prompt position, as vLLM reports it."""

    logprob: float | None
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class DelayAnswer(Struct, frozen=True):
    """What the prompt of another request cost this one, waiting or running."""

    request_id: str
    ms: float


class TimingsAnswer(Struct, frozen=True, kw_only=True):
    """Where the time of a call went; the parts add up to `total_ms`, but for rounding. The engine's are
    `quire.engine.ledger`'s."""

    queue_ms: float
    prefill_ms: float
    others_prefill_ms: float
    decode_ms: float
    preempted_ms: float
    sampling_ms: float
    text_ms: float
    """Checking, template and tokenizer; and from the engine's last token to its text."""
    client_ms: float
    """Waiting for the client: to send its body, and to take what was ready."""
    total_ms: float
    delayed_by: list[DelayAnswer]
    """At most three, the costliest first."""


class Divergence(Struct, frozen=True, kw_only=True):
    """Where a prompt stops being like the most similar cached one, and what each has there."""

    position: int
    before: str
    token_id: int
    text: str
    after: str
    cached_token_id: int
    cached_text: str
    cached_after: str


class CacheReportAnswer(Struct, frozen=True, kw_only=True):
    """What the prefix cache had of a prompt, and why no more."""

    prompt_tokens: int
    cached_tokens: int
    missed_tokens: int
    block_size: int
    reason: str
    message: str
    divergence: Divergence | UnsetType = UNSET


class QuireAnswer(Struct):
    """What a request asked to be told about itself."""

    timings: TimingsAnswer | UnsetType = UNSET
    cache_report: CacheReportAnswer | UnsetType = UNSET


class Envelope(Struct, kw_only=True):
    """What every whole answer and every frame of a stream begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class TopToken(Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Struct, frozen=True):
    """A token of the answer with its log probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken]


class ChatLogprobs(Struct):
    """`refusal` is always null; OpenAI's own clients look for it."""

    content: list[ChatToken]
    refusal: None = None


class CallFunction(Struct):
    """What is called; in a stream, a part of it."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(Struct, kw_only=True):
    """A part of a tool call in a stream."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CallFunction


class ChatDelta(Struct):
    """What a choice gained."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    """One choice of a chunk."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | UnsetType = UNSET
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Envelope, kw_only=True):
    """One frame of a chat stream."""

    object: str = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    quire: QuireAnswer | UnsetType = UNSET


class ToolCall(Struct, kw_only=True):
    """A whole tool call."""

    id: str
    type: str = "function"
    function: CallFunction


class ChatMessage(Struct, kw_only=True):
    """A whole answer."""

    role: str = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """One choice of a whole answer."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Envelope, kw_only=True):
    """The JSON answer of a chat."""

    object: str = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    quire: QuireAnswer | UnsetType = UNSET


class CompletionLogprobs(Struct):
    """Four lists of equal length; offsets count characters from the start of `text`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One choice, of a chunk or of a whole answer: the two have the same shape."""

    index: int
    text: str
    logprobs: CompletionLogprobs | UnsetType = UNSET
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Envelope, kw_only=True):
    """One frame of a stream, or the JSON answer."""

    object: str = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    quire: QuireAnswer | UnsetType = UNSET
