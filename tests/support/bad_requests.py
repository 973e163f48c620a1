"""Bodies that must be refused, each with its param, its code and a part of its message. Names: RELIABILITY, B-table."""

from __future__ import annotations

from typing import Any

import pytest
from support.stub_engine import CONTEXT, VOCAB

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
LEAVE_OUT = object()


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "stub", "messages": [USER], **fields}
    return {name: value for name, value in body.items() if value is not LEAVE_OUT}


def completion(**fields: Any) -> dict[str, Any]:
    body = {"model": "stub", "prompt": "hi", **fields}
    return {name: value for name, value in body.items() if value is not LEAVE_OUT}


def tool(name: Any = "look_up", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}

# Body, param, code, what the message contains.
BOTH: list[tuple[str, dict[str, Any], str | None, str, str]] = [
    ("B030", {"max_token": 5}, "max_token", "unknown_parameter", "did you mean max_tokens"),
    ("B030 spelling", {"topP": 0.5}, "topP", "unknown_parameter", "did you mean top_p"),
    ("B031", {"best_of": 2}, "best_of", "unsupported_parameter", "best_of"),
    ("B031 guided", {"guided_json": {"type": "object"}}, "guided_json", "unsupported_parameter", "not built"),
    ("B031 structured", {"structured_outputs": {"regex": "a"}}, "structured_outputs", "unsupported_parameter", ""),
    ("B031 true is no 1", {"best_of": True}, "best_of", "unsupported_parameter", ""),
    ("B032 missing", {"model": LEAVE_OUT}, "model", "missing", "model"),
    ("B032 null", {"model": None}, "model", "missing", "model"),
    ("B032 number", {"model": 7}, "model", "invalid_type", "7"),
    ("B054 negative", {"max_tokens": -1}, "max_tokens", "invalid_value", ">= 1|at least 1"),
    ("B054 zero", {"max_tokens": 0}, "max_tokens", "invalid_value", "at least 1"),
    ("B054 fraction", {"max_tokens": 1.5}, "max_tokens", "invalid_type", "integer"),
    ("B054 string", {"max_tokens": "10"}, "max_tokens", "invalid_type", "integer"),
    ("B054 bool", {"max_tokens": True}, "max_tokens", "invalid_type", "integer"),
    ("B054 huge", {"max_tokens": 10**30}, "max_tokens", "invalid_value", "integer"),
    ("B055", {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "conflicting_parameters", "max_tokens"),
    ("B056 low", {"temperature": -0.1}, "temperature", "invalid_value", "0..2"),
    ("B056 high", {"temperature": 2.01}, "temperature", "invalid_value", "0..2"),
    ("B056 word", {"temperature": "hot"}, "temperature", "invalid_type", "0..2"),
    ("B056 bool", {"temperature": True}, "temperature", "invalid_type", "0..2"),
    ("B057 top_p low", {"top_p": -0.1}, "top_p", "invalid_value", "0..1"),
    ("B057 top_p high", {"top_p": 1.1}, "top_p", "invalid_value", "0..1"),
    ("B057 min_p", {"min_p": 1.5}, "min_p", "invalid_value", "0..1"),
    ("B057 top_k low", {"top_k": -2}, "top_k", "invalid_value", "top_k"),
    ("B057 top_k high", {"top_k": 2**40}, "top_k", "invalid_value", "top_k"),
    ("B057 top_k type", {"top_k": 1.5}, "top_k", "invalid_type", "integer"),
    ("B059 zero", {"repetition_penalty": 0}, "repetition_penalty", "invalid_value", ""),
    ("B059 negative", {"repetition_penalty": -1}, "repetition_penalty", "invalid_value", ""),
    ("B059 huge", {"repetition_penalty": 1e308}, "repetition_penalty", "invalid_value", ""),
    ("B059 presence", {"presence_penalty": 2.01}, "presence_penalty", "invalid_value", "-2..2"),
    ("B059 frequency", {"frequency_penalty": "x"}, "frequency_penalty", "invalid_type", ""),
    ("B061 zero", {"n": 0}, "n", "invalid_value", "1..16"),
    ("B061 negative", {"n": -1}, "n", "invalid_value", "1..16"),
    ("B061 many", {"n": 17}, "n", "invalid_value", "1..16"),
    ("B061 million", {"n": 10**6}, "n", "invalid_value", "1..16"),
    ("B061 huge", {"n": 10**18}, "n", "invalid_value", "1..16"),
    ("B061 bool", {"n": True}, "n", "invalid_type", "1..16"),
    ("B062 word", {"logit_bias": {"AI": -100}}, "logit_bias.AI", "invalid_value", "integer"),
    ("B062 beyond", {"logit_bias": {"99999999": 5}}, "logit_bias.99999999", "token_out_of_range", f"0..{VOCAB - 1}"),
    ("B062 negative", {"logit_bias": {"-1": 1}}, "logit_bias.-1", "token_out_of_range", f"0..{VOCAB - 1}"),
    ("B062 value", {"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value", "-100..100"),
    ("B062 list", {"logit_bias": []}, "logit_bias", "invalid_type", "object"),
    ("B062 digits", {"logit_bias": {"9" * 5000: 1}}, "logit_bias." + "9" * 64, "invalid_value", ""),
    ("B063 bias", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias", "too_many_items", "1024"),
    ("B063 allowed", {"allowed_token_ids": [1] * 1025}, "allowed_token_ids", "too_many_items", "1024"),
    ("B063 stop ids", {"stop_token_ids": [1] * 257}, "stop_token_ids", "too_many_items", "256"),
    ("B063 none allowed", {"allowed_token_ids": []}, "allowed_token_ids", "invalid_value", ""),
    ("B066 empty", {"stop": ""}, "stop[0]", "invalid_value", "1..256"),
    ("B066 seventeen", {"stop": ["a"] * 17}, "stop", "too_many_items", "16"),
    ("B066 long", {"stop": "x" * 1_000_000}, "stop[0]", "invalid_value", "256"),
    ("B066 number", {"stop": [1]}, "stop[0]", "invalid_type", "string"),
    ("B066 replacement", {"stop": ["\ufffd"]}, "stop[0]", "invalid_value", "never"),
    ("B066 object", {"stop": {}}, "stop", "invalid_type", "list"),
    ("B067 beyond", {"stop_token_ids": [VOCAB]}, "stop_token_ids[0]", "token_out_of_range", f"0..{VOCAB - 1}"),
    ("B067 negative", {"stop_token_ids": [1, -1]}, "stop_token_ids[1]", "token_out_of_range", ""),
    ("B067 huge", {"stop_token_ids": [10**12]}, "stop_token_ids[0]", "token_out_of_range", ""),
    ("B067 word", {"stop_token_ids": ["x"]}, "stop_token_ids[0]", "invalid_type", "integer"),
    ("B068 prompt", {"prompt_logprobs": 10**6}, "prompt_logprobs", "invalid_value", "0..20"),
    ("B069 stream", {"stream": "yes"}, "stream", "invalid_type", "true or false"),
    ("B069 options", {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "stream"),
    (
        "B069 usage",
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "invalid_type",
        "true or false",
    ),
    ("B071 xml", {"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "json_schema"),
    ("B071 no type", {"response_format": {}}, "response_format.type", "missing", ""),
    (
        "B071 no schema",
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing",
        "required",
    ),
    (
        "B071 list",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
        "invalid_type",
        "object",
    ),
    ("not built", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter", ""),
    ("B084 salt empty", {"cache_salt": ""}, "cache_salt", "invalid_value", ""),
    ("B084 salt type", {"cache_salt": 5}, "cache_salt", "invalid_type", ""),
    ("B084 salt long", {"cache_salt": "x" * 10_000}, "cache_salt", "invalid_value", ""),
    ("B084 user", {"user": "x" * 10_000}, "user", "invalid_value", ""),
    ("B084 priority", {"priority": "high"}, "priority", "invalid_type", "integer"),
    ("B084 deadline", {"deadline_ms": -1}, "deadline_ms", "invalid_value", ""),
    ("B084 deadline high", {"deadline_ms": 10**12}, "deadline_ms", "invalid_value", ""),
    ("fields", {f"zebra{i}": 1 for i in range(300)}, None, "too_many_items", "256"),
    ("seed", {"seed": 2**63}, "seed", "invalid_value", ""),
    ("seed word", {"seed": "x"}, "seed", "invalid_type", ""),
    ("bad words", {"bad_words": [""]}, "bad_words[0]", "invalid_value", ""),
    ("bad words many", {"bad_words": ["a"] * 300}, "bad_words", "too_many_items", "256"),
    ("bad words long", {"bad_words": ["a" * 100]}, "bad_words", "invalid_value", "64"),
    ("truncate", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value", ""),
    ("metadata", {"metadata": [1]}, "metadata", "invalid_type", "object"),
    ("min beyond default", {"min_tokens": 3000, "temperature": 0}, "min_tokens", "conflicting_parameters", ""),
    ("skip", {"skip_special_tokens": "no"}, "skip_special_tokens", "invalid_type", ""),
    ("echo ids", {"return_token_ids": 1}, "return_token_ids", "invalid_type", ""),
]

CHAT_ONLY: list[tuple[str, dict[str, Any], str | None, str, str]] = [
    ("B033 missing", {"messages": LEAVE_OUT}, "messages", "missing", ""),
    ("B033 empty", {"messages": []}, "messages", "invalid_value", "1..4096"),
    ("B033 string", {"messages": "hi"}, "messages", "invalid_type", "list"),
    ("B033 many", {"messages": [USER] * 4097}, "messages", "invalid_value", "1..4096"),
    ("B034 wizard", {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value", "system"),
    ("B034 missing", {"messages": [{"content": "x"}]}, "messages[0].role", "missing", "assistant"),
    ("B034 list", {"messages": [["user", "x"]]}, "messages[0].role", "invalid_type", "object"),
    ("B035 null", {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type", ""),
    ("B035 number", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "5"),
    ("B035 empty", {"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value", ""),
    (
        "B035 no type",
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type",
        "invalid_value",
        "",
    ),
    (
        "B035 image",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        "messages[0].content[0].type",
        "invalid_value",
        "image_url",
    ),
    ("B037", {"messages": [{"role": "user", "content": "refuse me"}]}, "messages", "chat_template_error", "alternate"),
    (
        "B038 missing",
        {"messages": [USER, CALL, {"role": "tool", "content": "1"}]},
        "messages[2].tool_call_id",
        "missing",
        "",
    ),
    (
        "B038 unknown",
        {"messages": [USER, CALL, {"role": "tool", "content": "1", "tool_call_id": "c2"}]},
        "messages[2].tool_call_id",
        "invalid_value",
        "c2",
    ),
    ("B040", {"chat_template": "{{ x }}"}, "chat_template", "unsupported_parameter", "operator"),
    (
        "B055",
        {"max_tokens": 5, "max_completion_tokens": 6},
        "max_completion_tokens",
        "conflicting_parameters",
        "differ",
    ),
    ("B054 new", {"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value", "at least 1"),
    ("B068 high", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "0..20"),
    ("B068 low", {"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value", "0..20"),
    ("B068 without", {"top_logprobs": 2}, "top_logprobs", "invalid_value", "logprobs = true"),
    ("B068 count", {"logprobs": 3}, "logprobs", "invalid_type", "true or false"),
    ("B080 empty", {"tools": []}, "tools", "invalid_value", "empty"),
    ("B080 object", {"tools": {}}, "tools", "invalid_type", "list"),
    ("B080 many", {"tools": [tool(f"t{i}") for i in range(129)]}, "tools", "too_many_items", "128"),
    ("B080 no name", {"tools": [tool(None)]}, "tools[0].function.name", "invalid_value", "null"),
    ("B080 bad name", {"tools": [tool("bad name!")]}, "tools[0].function.name", "invalid_value", "bad name!"),
    ("B080 long", {"tools": [tool("x" * 65)]}, "tools[0].function.name", "invalid_value", "64"),
    ("B080 twice", {"tools": [tool(), tool()]}, "tools[1].function.name", "invalid_value", "twice"),
    ("B080 string", {"tools": ["x"]}, "tools[0]", "invalid_type", "object"),
    (
        "B081 type",
        {"tools": [tool(parameters={"type": "objekt"})]},
        "tools[0].function.parameters",
        "invalid_value",
        "objekt",
    ),
    (
        "B081 pattern",
        {"tools": [tool(parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "((("}}})]},
        "tools[0].function.parameters",
        "invalid_value",
        "pattern",
    ),
    (
        "B081 patterns",
        {"tools": [tool(f"f{i}", parameters={"pattern": "a" * 4000}) for i in range(20)]},
        "tools",
        "too_many_items",
        "patterns",
    ),
    (
        "B081 deep",
        {"tools": [tool(parameters={"anyOf": [nested(50)], "items": {"items": nested(1)}})], "tool_choice": 5},
        "tool_choice",
        "invalid_type",
        "",
    ),
    (
        "B082 unknown",
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice",
        "invalid_value",
        "other",
    ),
    ("B082 required", {"tool_choice": "required"}, "tool_choice", "invalid_value", "tools"),
    ("B082 number", {"tools": [tool()], "tool_choice": 3}, "tool_choice", "invalid_type", "3"),
    ("required", {"tools": [tool()], "tool_choice": "required"}, "tool_choice", "unsupported_parameter", "auto"),
    (
        "named",
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        "tool_choice",
        "unsupported_parameter",
        "auto",
    ),
    ("reasoning", {"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter", ""),
    ("functions", {"functions": []}, "functions", "unsupported_parameter", "tools"),
    ("modalities", {"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", ""),
    ("kwargs", {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "unsupported_parameter", ""),
    (
        "both ends",
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "conflicting_parameters",
        "",
    ),
    ("user's end", {"continue_final_message": True}, "continue_final_message", "invalid_value", "assistant"),
    (
        "context",
        {"messages": [{"role": "user", "content": "x" * CONTEXT}]},
        "messages",
        "context_length_exceeded",
        "256",
    ),
]

COMPLETIONS_ONLY: list[tuple[str, dict[str, Any], str | None, str, str]] = [
    ("B045 missing", {"prompt": LEAVE_OUT}, "prompt", "missing", ""),
    ("B045 empty", {"prompt": ""}, "prompt", "empty_prompt", ""),
    ("B045 list", {"prompt": []}, "prompt", "empty_prompt", ""),
    ("B045 inner", {"prompt": [[]]}, "prompt", "empty_prompt", ""),
    ("B045 mixed", {"prompt": [1, "a"]}, "prompt", "invalid_type", "integer"),
    ("B045 mixed lists", {"prompt": ["a", 1]}, "prompt", "invalid_type", ""),
    ("B045 bool", {"prompt": [True]}, "prompt", "invalid_type", "true"),
    ("B045 fraction", {"prompt": [1.5]}, "prompt", "invalid_type", "1.5"),
    ("B045 number", {"prompt": 5}, "prompt", "invalid_type", ""),
    ("B046 negative", {"prompt": [-1]}, "prompt", "token_out_of_range", f"0..{VOCAB - 1}"),
    ("B046 V", {"prompt": [VOCAB]}, "prompt", "token_out_of_range", f"0..{VOCAB - 1}"),
    ("B046 31", {"prompt": [2**31]}, "prompt", "token_out_of_range", ""),
    ("B046 63", {"prompt": [[1], [2**63]]}, "prompt", "token_out_of_range", ""),
    ("B046 big", {"prompt": [10**30]}, "prompt", "token_out_of_range", ""),
    ("B047", {"prompt": ["a"] * 65}, "prompt", "too_many_sequences", "64"),
    ("B047 product", {"prompt": ["a"] * 64, "n": 16}, "prompt", "too_many_sequences", "512"),
    ("B049 suffix", {"suffix": "x"}, "suffix", "unsupported_parameter", ""),
    ("B049 best", {"best_of": 10**6}, "best_of", "unsupported_parameter", ""),
    ("B050", {"prompt": [1] * (CONTEXT + 1)}, "prompt", "context_length_exceeded", "257"),
    ("B051 equal", {"prompt": [1] * CONTEXT}, "prompt", "context_length_exceeded", "256"),
    ("B051 sum", {"prompt": [1] * 200, "max_tokens": 57}, "prompt", "context_length_exceeded", "max_tokens"),
    ("B068 completions", {"logprobs": 21}, "logprobs", "invalid_value", "0..20"),
    ("B068 bool", {"logprobs": True}, "logprobs", "invalid_type", "integer"),
    ("echo", {"echo": "yes"}, "echo", "invalid_type", ""),
]

ROWS = [
    *[pytest.param(CHAT, chat(**fields), *rest, id=f"chat {name}") for name, fields, *rest in BOTH + CHAT_ONLY],
    *[
        pytest.param(COMPLETIONS, completion(**fields), *rest, id=f"completions {name}")
        for name, fields, *rest in BOTH + COMPLETIONS_ONLY
    ],
]
