"""What a client sends and what it gets back. Unknown fields of an answer are ignored, missing ones have a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

Messages = str | Sequence[Mapping[str, Any]]
"""One user message, or OpenAI's list of messages."""

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text or token ids, one prompt or several."""


class Fields(TypedDict, total=False):
    """The request fields that completions and chat share; `extra` holds any others."""

    model: str
    max_tokens: int
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    logprobs: int | bool
    ignore_eos: bool
    min_tokens: int
    priority: int
    quire: Mapping[str, bool]
    extra: Mapping[str, Any]


class ChatFields(Fields, total=False):
    """The request fields of chat."""

    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    top_logprobs: int
    chat_template_kwargs: Mapping[str, Any]


class CompletionFields(Fields, total=False):
    """The request fields of completions."""

    echo: bool
    prompt_logprobs: int


class PromptDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache held."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class Function(msgspec.Struct, frozen=True):
    """The function of a tool call; `arguments` is JSON text. In a stream either may be a part, or absent."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """One call that the model asks for; in a stream, a part of the call at `index`."""

    function: Function
    id: str | None = None
    index: int = 0
    type: str = "function"


class Message(msgspec.Struct, frozen=True):
    """The assistant's message."""

    role: str = "assistant"
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the n answers of a chat request."""

    message: Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class Chat(msgspec.Struct, frozen=True):
    """The answer of a chat request."""

    choices: tuple[ChatChoice, ...]
    id: str = ""
    model: str = ""
    usage: Usage = Usage()
    quire: Mapping[str, Any] | None = None
    """What the request asked to be told about itself: `timings`, `cache_report`."""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].message.content or ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first choice's tool calls."""
        return self.choices[0].message.tool_calls or ()


class CompletionChoice(msgspec.Struct, frozen=True):
    """One of the choices of a completion request: prompt i, choice j is index i x n + j."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class Completion(msgspec.Struct, frozen=True):
    """The answer of a completion request."""

    choices: tuple[CompletionChoice, ...]
    id: str = ""
    model: str = ""
    usage: Usage = Usage()
    quire: Mapping[str, Any] | None = None
    """What the request asked to be told about itself: `timings`, `cache_report`."""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


class Delta(msgspec.Struct, frozen=True):
    """One event of a stream: what one choice gained. The last one carries the usage, and `quire` where that was asked
    for, and no text."""

    text: str = ""
    choice: int = 0
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Any = None
    usage: Usage | None = None
    quire: Mapping[str, Any] | None = None


class Model(msgspec.Struct, frozen=True):
    """A model that the server answers for."""

    id: str
    created: int = 0
    owned_by: str = ""
    max_model_len: int | None = None
