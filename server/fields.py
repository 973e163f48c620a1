"""What each route does with each field: one table, so that nothing is dropped in silence.

    SUPPORTED      read and honoured
    NO_EFFECT      accepted, as OpenAI's own clients send it; it cannot change an answer here
    UNSUPPORTED    known elsewhere and not built: refused, unless the value asks for what happens anyway

Any other field is refused when it looks like a misspelt one, else named in the header `x-ignored-fields`, or refused
under --strict.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from typing import Any

from quire.server.errors import ApiError, quoted

MAX_FIELDS = 256
"""Of one body; looking for misspelt names takes time for each."""
MAX_NAMED = 20
"""Ignored fields that the header names."""


class Kind(enum.Enum):
    """What happens with a field."""

    SUPPORTED = "supported"
    NO_EFFECT = "no effect"
    UNSUPPORTED = "unsupported"


def _kinds(supported: str, no_effect: str = "", unsupported: str = "") -> dict[str, Kind]:
    groups = ((supported, Kind.SUPPORTED), (no_effect, Kind.NO_EFFECT), (unsupported, Kind.UNSUPPORTED))
    return {name: kind for names, kind in groups for name in names.split()}


_SAMPLING = """
    n stop seed temperature top_k top_p min_p presence_penalty frequency_penalty repetition_penalty logit_bias
    max_tokens min_tokens ignore_eos stop_token_ids include_stop_str_in_output skip_special_tokens allowed_token_ids
    bad_words prompt_logprobs logprobs
"""
_REQUEST = """
    model stream stream_options user return_token_ids truncate_prompt_tokens priority deadline_ms cache_salt
    response_format add_special_tokens quire
"""
_NOT_BUILT = """
    structured_outputs guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
    guided_whitespace_pattern structural_tag use_beam_search best_of length_penalty logits_processors prompt_embeds
    spaces_between_special_tokens kv_transfer_params return_tokens_as_token_ids vllm_xargs early_stopping
"""

COMPLETION_FIELDS: Mapping[str, Kind] = _kinds(
    _SAMPLING + _REQUEST + "prompt echo",
    "metadata store service_tier safety_identifier prompt_cache_key",
    _NOT_BUILT + "suffix",
)
CHAT_FIELDS: Mapping[str, Kind] = _kinds(
    _SAMPLING
    + _REQUEST
    + """
    messages max_completion_tokens tools tool_choice parallel_tool_calls top_logprobs chat_template_kwargs
    add_generation_prompt continue_final_message
    """,
    "store metadata service_tier verbosity prompt_cache_key safety_identifier",
    _NOT_BUILT
    + """
    reasoning_effort include_reasoning thinking functions function_call modalities audio prediction web_search_options
    chat_template documents mm_processor_kwargs media_io_kwargs echo suffix prompt
    """,
)
TOKENIZE_FIELDS: Mapping[str, Kind] = _kinds(
    """
    model prompt messages add_special_tokens return_token_strs tools chat_template_kwargs add_generation_prompt
    continue_final_message
    """,
    "",
    "chat_template mm_processor_kwargs",
)
DETOKENIZE_FIELDS: Mapping[str, Kind] = _kinds("model tokens skip_special_tokens")

HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "suffix": ("",),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "documents": ([],),
    "logits_processors": ([],),
}
"""Values of unsupported fields that ask for what happens anyway; null always does."""

WHY: Mapping[str, str] = {
    "suffix": "no model here has fill-in-the-middle tokens",
    "best_of": "one candidate is generated for each choice; use n",
    "chat_template": "the operator sets the template, with --chat-template",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "reasoning_effort": "reasoning is not built yet",
    "echo": "only /v1/completions can echo its prompt",
    "prompt": "/v1/chat/completions takes messages; /v1/completions takes a prompt",
    "return_tokens_as_token_ids": "use return_token_ids",
}


def check_fields(body: Mapping[str, Any], table: Mapping[str, Kind], *, strict: bool) -> list[str]:
    """Refuse what cannot be honoured; return the names of the fields that are ignored."""
    if len(body) > MAX_FIELDS:
        raise ApiError("too_many_items", f"The body has {len(body)} fields, and the limit is {MAX_FIELDS}.")
    ignored: list[str] = []
    for name, value in body.items():
        kind = table.get(name)
        if kind is None:
            _refuse_unknown(name, table, strict)
            ignored.append(name)
        elif kind is Kind.UNSUPPORTED and not _is_harmless(name, value):
            why = WHY.get(name, "not built yet")
            raise ApiError("unsupported_parameter", f"{name} = {quoted(value)} is not supported: {why}.", name)
    return ignored


def ignored_header(names: list[str]) -> tuple[bytes, bytes]:
    """The header that names ignored fields; other than printable ASCII is escaped, and the list is bounded."""
    shown = [ascii(name[:64])[1:-1].replace(",", "\\x2c") for name in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        shown.append(f"and {len(names) - MAX_NAMED} more")
    return b"x-ignored-fields", ", ".join(shown).encode()


def _is_harmless(name: str, value: Any) -> bool:
    # True == 1 in Python, and best_of: true is no 1.
    return value is None or any(
        value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
        for harmless in HARMLESS.get(name, ())
    )


def _refuse_unknown(name: str, table: Mapping[str, Kind], strict: bool) -> None:
    shown = quoted(name)
    near = nearest(name, table)
    if near is not None:
        raise ApiError("unknown_parameter", f"Unknown field {shown}; did you mean {near}?", name[:64])
    if strict:
        text = f"Unknown field {shown}; this server was started with --strict, which refuses fields that it ignores."
        raise ApiError("unknown_parameter", text, name[:64])


def nearest(name: str, table: Mapping[str, Kind]) -> str | None:
    """The known field that `name` misspells, or None."""
    if not 3 <= len(name) <= 40:
        return None
    plain = _plain(name)
    close = difflib.get_close_matches(plain, [_plain(known) for known in table], n=1, cutoff=0.86)
    return next((known for known in table if close and _plain(known) == close[0]), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
