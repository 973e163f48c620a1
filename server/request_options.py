"""What completions and chat ask for in the same words, apart from sampling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from quire.server.errors import ApiError, quoted
from quire.server.reader import Reader

MAX_LABEL = 512
"""Characters of `user`, `cache_salt` and the like."""
MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_PRIORITY = 2**31 - 1
RESPONSE_FORMATS = ("text", "json_object", "json_schema")


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Checked options of one request."""

    model: str
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    """Usage on every chunk."""
    return_token_ids: bool = False
    truncate_prompt_tokens: int | None = None
    """Keep only this many tokens of the prompt's end; -1: as many as fit."""
    add_special_tokens: bool | None = None
    priority: int = 0
    deadline_ms: int | None = None
    cache_salt: str | None = None
    timings: bool = False
    """Whether the answer tells where its time went."""
    cache_report: bool = False
    """Whether it tells what the prefix cache had of the prompt."""


def read_options(reader: Reader, models: Collection[str]) -> RequestOptions:
    """Read and check them; `models` are the names that are served."""
    model = read_model(reader, models)
    stream = reader.boolean("stream")
    stream_options = _read_stream_options(reader, stream)
    for label in ("user", "prompt_cache_key", "safety_identifier", "service_tier", "verbosity"):
        reader.string(label, max_length=MAX_LABEL, min_length=0)
    reader.object("metadata")
    reader.boolean("store")
    _check_response_format(reader)
    explain = _read_quire(reader)
    return RequestOptions(
        model=model,
        stream=stream,
        include_usage=stream_options.boolean("include_usage"),
        continuous_usage=stream_options.boolean("continuous_usage_stats"),
        return_token_ids=reader.boolean("return_token_ids"),
        truncate_prompt_tokens=_read_truncate(reader),
        add_special_tokens=None if reader.get("add_special_tokens") is None else reader.boolean("add_special_tokens"),
        priority=reader.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        deadline_ms=reader.integer("deadline_ms", 1, MAX_DEADLINE_MS),
        cache_salt=reader.string("cache_salt", max_length=MAX_LABEL),
        timings=explain.boolean("timings"),
        cache_report=explain.boolean("cache_report"),
    )


def read_model(reader: Reader, models: Collection[str]) -> str:
    """The model's name. Raises `missing`, `invalid_type` or `model_not_found`; no file is looked at."""
    name = reader.required("model")
    if not isinstance(name, str):
        raise reader.wrong_type("model", name, "a string")
    if name not in models:
        raise model_not_found(name)
    return name


def model_not_found(name: str) -> ApiError:
    """The answer to any name that is not served."""
    return ApiError("model_not_found", f"The model {quoted(name)} does not exist; GET /v1/models lists them.", "model")


def _read_stream_options(reader: Reader, stream: bool) -> Reader:
    options = reader.object("stream_options")
    if options is not None and not stream:
        raise ApiError("invalid_value", "stream_options is only possible with stream = true.", "stream_options")
    known = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    for name in options or ():
        if name not in known:
            field = f"stream_options.{name[:64]}"
            raise ApiError("unknown_parameter", f"Unknown field stream_options.{quoted(name)}.", field)
    inner = Reader(options or {}, "stream_options")
    if inner.boolean("include_obfuscation"):
        text = "stream_options.include_obfuscation = true is not supported: frames are not padded."
        raise ApiError("unsupported_parameter", text, "stream_options.include_obfuscation")
    return inner


def _read_quire(reader: Reader) -> Reader:
    known = ("timings", "cache_report")
    wanted = reader.object("quire") or {}
    for name in wanted:
        if name not in known:
            text = f"Unknown field quire.{quoted(name)}; quire holds {' and '.join(known)}."
            raise ApiError("unknown_parameter", text, f"quire.{name[:64]}")
    return Reader(wanted, "quire")


def _read_truncate(reader: Reader) -> int | None:
    value = reader.integer("truncate_prompt_tokens", -1, MAX_PRIORITY)
    if value == 0:
        text = "truncate_prompt_tokens: 0 would leave no prompt; use -1 (what fits) or at least 1."
        raise ApiError("invalid_value", text, "truncate_prompt_tokens")
    return value


def _check_response_format(reader: Reader) -> None:
    given = reader.object("response_format")
    if given is None:
        return
    inner = Reader(given, "response_format")
    kind: Any = inner.required("type")
    if kind not in RESPONSE_FORMATS:
        text = f"response_format.type: {quoted(kind)} is not one of {', '.join(RESPONSE_FORMATS)}."
        raise ApiError("invalid_value", text, "response_format.type")
    if kind == "json_schema":
        wrapper = inner.object("json_schema")
        if wrapper is None:
            raise ApiError("missing", "response_format.json_schema is required.", "response_format.json_schema")
        schema = Reader(wrapper, "response_format.json_schema")
        if schema.object("schema") is None:
            name = "response_format.json_schema.schema"
            raise ApiError("missing", f"{name} is required.", name)
    if kind != "text":
        text = f"response_format.type = {quoted(kind)} is not supported: structured output is not built yet."
        raise ApiError("unsupported_parameter", text, "response_format")
