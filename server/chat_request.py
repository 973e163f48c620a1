"""The body of POST /v1/chat/completions, checked, with its messages in the shape that templates read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from quire.server.chat_messages import read_messages
from quire.server.errors import ApiError
from quire.server.limits import Limits
from quire.server.reader import Reader
from quire.server.request_options import RequestOptions, read_options
from quire.server.sampling import SamplingFields, SamplingRules, read_sampling
from quire.server.tools import Tools, read_tools


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of /v1/chat/completions."""

    options: RequestOptions
    sampling: SamplingFields
    messages: list[dict[str, Any]]
    tools: Tools
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = {}
    ignored: list[str] = []
    """Fields inside messages that no template reads."""


def read_chat(
    body: dict[str, Any], models: Collection[str], rules: SamplingRules, limits: Limits, *, auto_tools: bool
) -> ChatRequest:
    """Check a body whose field names have been checked. Raises ApiError."""
    reader = Reader(body)
    options = read_options(reader, models)
    max_tokens, spelling = _read_max_tokens(reader)
    sampling = read_sampling(
        reader,
        rules,
        logprobs=_read_logprobs(reader, rules.max_logprobs),
        max_tokens=max_tokens,
        renamed={"max_tokens": spelling, "logprobs": "top_logprobs"},
    )
    ignored: list[str] = []
    messages = read_messages(reader, limits, ignored)
    add_generation_prompt, continue_final = read_template_switches(reader, messages)
    return ChatRequest(
        options=options,
        sampling=sampling,
        messages=messages,
        tools=read_tools(reader, limits.tools, auto=auto_tools),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final,
        template_kwargs=read_template_kwargs(reader),
        ignored=ignored,
    )


def read_template_switches(reader: Reader, messages: list[dict[str, Any]]) -> tuple[bool, bool]:
    """add_generation_prompt and continue_final_message, which exclude each other."""
    continue_final = reader.boolean("continue_final_message")
    add = reader.boolean("add_generation_prompt", default=not continue_final)
    if continue_final and add:
        text = "continue_final_message and add_generation_prompt exclude each other."
        raise ApiError("conflicting_parameters", text, "continue_final_message")
    if continue_final and messages[-1]["role"] != "assistant":
        text = "continue_final_message continues an assistant's message, and the last message is none."
        raise ApiError("invalid_value", text, "continue_final_message")
    return add, continue_final


def read_template_kwargs(reader: Reader) -> dict[str, Any]:
    """chat_template_kwargs, whose names must not replace what the server passes itself."""
    given = reader.object("chat_template_kwargs") or {}
    for name in ("messages", "tools", "add_generation_prompt", "chat_template", "bos_token", "eos_token", "tokenize"):
        if name in given:
            field = f"chat_template_kwargs.{name}"
            raise ApiError("unsupported_parameter", f"{field} cannot be set: the server passes it itself.", field)
    return given


def _read_max_tokens(reader: Reader) -> tuple[int | None, str]:
    """The limit, and which of its two spellings was used."""
    old, new = reader.get("max_tokens"), reader.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        text = "max_tokens and max_completion_tokens differ; send max_completion_tokens alone."
        raise ApiError("conflicting_parameters", text, "max_completion_tokens")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _read_logprobs(reader: Reader, max_logprobs: int) -> int | None:
    """`logprobs` and `top_logprobs` as one count; None for none."""
    wanted = reader.boolean("logprobs")
    top = reader.integer("top_logprobs", 0, max_logprobs)
    if top is not None and not wanted and top > 0:
        raise ApiError("invalid_value", "top_logprobs is only possible with logprobs = true.", "top_logprobs")
    return (top or 0) if wanted else None
