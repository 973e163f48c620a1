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


# --- chat ------------------------------------------------------------------------------------------------------------


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


class ChatChunk(Struct, kw_only=True):
    """One frame of a chat stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


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


class ChatCompletion(Struct, kw_only=True):
    """The JSON answer of a chat."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


# --- completions -----------------------------------------------------------------------------------------------------


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


class Completion(Struct, kw_only=True):
    """One frame of a stream, or the JSON answer."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
