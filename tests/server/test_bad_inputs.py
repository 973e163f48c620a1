"""Every bad request gets the named status and the envelope, and reaches no engine. Row names: RELIABILITY, B-table."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from support.bad_requests import CHAT, COMPLETIONS, ROWS, USER, chat, completion, tool
from support.stub_engine import CONTEXT, VOCAB, StubEngine, StubTokenizer


def check_envelope(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response whose shape is right."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = json.loads(response.content)
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 600
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert isinstance(error["code"], str)
    result: dict[str, Any] = error
    return result


@pytest.mark.parametrize(("path", "body", "param", "code", "says"), ROWS)
async def test_refused(
    http: httpx.AsyncClient, engine: StubEngine, path: str, body: dict[str, Any], param: str, code: str, says: str
) -> None:
    error = check_envelope(await http.post(path, json=body), 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert any(part in error["message"] for part in says.split("|")), error["message"]
    # B070: asking for a stream changes nothing about a refusal.
    if not {"stream", "stream_options"} & body.keys():
        streamed = check_envelope(await http.post(path, json={**body, "stream": True}), 400)
        assert (streamed["param"], streamed["code"]) == (param, code)
    assert engine.requests == []


@pytest.mark.parametrize("name", ["nope", "x" * 10_000, "../../etc/passwd", "", "stub\x00", "Stub"])
@pytest.mark.parametrize(("path", "make"), [(CHAT, chat), (COMPLETIONS, completion)])
async def test_unknown_model(http: httpx.AsyncClient, engine: StubEngine, path: str, make: Any, name: str) -> None:
    error = check_envelope(await http.post(path, json=make(model=name)), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert engine.requests == []


BODIES = [
    (b"", "invalid_json", None, "line 1"),
    (b"null", "invalid_json", None, "JSON object"),
    (b"[]", "invalid_json", None, "JSON object"),
    (b'"x"', "invalid_json", None, "JSON object"),
    (b"{", "invalid_json", None, "line 1, column 2"),
    (b'{\n "a": 1,\n}', "invalid_json", None, "line 3, column 1"),
    (b'\xef\xbb\xbf{"model": "stub"}', "invalid_json", None, "byte order mark"),
    (b'{"a": 1} // no', "invalid_json", None, "column 10"),
    (b"{} {}", "invalid_json", None, "column 4"),
    (b'{"model": NaN}', "invalid_json", None, "column 11"),
    (b'{"model": -Infinity}', "invalid_json", None, "column"),
    (b'{"temperature": 1e400}', "invalid_json", None, "out of range"),
    (b'{"n": ' + b"9" * 5000 + b"}", "invalid_json", None, "out of range"),
    (b'{"model": "\xff"}', "invalid_json", None, "UTF-8"),
    (b'{"model": "\\ud800"}', "invalid_json", None, "line 1"),
    (b"[" * 20_000, "json_too_deep", None, "64"),
    (b'{"metadata": ' + b'{"a":' * 1000 + b"1" + b"}" * 1001, "json_too_deep", "metadata", "64"),
    (b'{"tools": [' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"]}", "json_too_deep", "tools", "64"),
    (b'{"n":1,"n":10000}', "duplicate_key", "n", "twice"),
    (b'{"metadata": {"a": {"b": 1, "\\u0062": 2}}}', "duplicate_key", "b", "twice"),
    (b'{"a":[' + b"1," * 200_000 + b"1]}", "json_too_large", None, "200000"),
    (b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}", "json_too_large", None, "200000"),
]


@pytest.mark.parametrize(("body", "code", "param", "says"), BODIES, ids=range(len(BODIES)))
async def test_json(http: httpx.AsyncClient, engine: StubEngine, body: bytes, code: str, param: str, says: str) -> None:
    headers = {"content-type": "application/json"}
    error = check_envelope(await http.post(CHAT, content=body, headers=headers), 400)
    assert (error["code"], error["param"]) == (code, param)
    assert says in error["message"], error["message"]
    assert engine.requests == []


HOSTILE = [
    b'{"a": "' + b'\\"' * 2_000_000,
    b'"\\' * 1_300_000,
    b'{"a": "' + b"\\" * 3_999_999,
    b'"' * 4_000_000,
    b"[" * 4_000_000,
    b"{" * 100_000 + b'"' * 3_000_000,
    b'{"a":' * 64 + b'"\\"' * 1_000_000,
    b"[[]," * 90_000,
    b'{"logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(150_000)) + b"}}",
    b"{" + b",".join(b'"max_token%d": 1' % i for i in range(150_000)) + b"}",
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_bodies_take_no_time(http: httpx.AsyncClient, body: bytes) -> None:
    """Four megabytes that were made to be slow: processor time, with a wide margin, since quadratic is minutes."""
    began = time.process_time()
    response = await http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert time.process_time() - began < 3
    check_envelope(response, 400)


async def test_structure_inside_strings_counts_for_nothing(http: httpx.AsyncClient) -> None:
    text = '[{"a":"b\\"' * 20
    response = await http.post(CHAT, json=chat(messages=[{"role": "user", "content": text}], max_tokens=1))
    assert response.status_code == 200


async def test_text_that_cannot_fit_is_not_tokenized(
    http: httpx.AsyncClient, engine: StubEngine, tokenizer: StubTokenizer
) -> None:
    """B052."""
    text = "x" * 3_000_000
    for path, body in (
        (CHAT, chat(messages=[{"role": "user", "content": text}])),
        (COMPLETIONS, completion(prompt=text)),
    ):
        error = check_envelope(await http.post(path, json=body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "at least" in error["message"]
    assert tokenizer.num_encoded == 0
    assert engine.requests == []


ALLOWED = [
    pytest.param(CHAT, chat(temperature=None, n=None, stop=None, tools=None, seed=None), id="null is absent"),
    pytest.param(CHAT, chat(temperature=1e-300, top_p=0, top_k=1, min_p=1), id="B058"),
    pytest.param(CHAT, chat(stop=[]), id="B066 no stops"),
    pytest.param(CHAT, chat(messages=[{"role": "user", "content": ""}]), id="B044 empty"),
    pytest.param(CHAT, chat(messages=[{"role": "user", "content": "\x00\ufeff\u202e  "}]), id="B044 odd"),
    pytest.param(CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]), id="parts"),
    pytest.param(CHAT, chat(response_format={"type": "text"}, best_of=1, modalities=["text"]), id="harmless values"),
    pytest.param(
        CHAT,
        chat(store=True, metadata={"a": "b"}, service_tier="auto", verbosity="low", prompt_cache_key="k", user="u"),
        id="no effect",
    ),
    pytest.param(CHAT, chat(tools=[tool(parameters={"type": "object"})], tool_choice="auto"), id="tools"),
    pytest.param(CHAT, chat(tools=[tool()], tool_choice="none", parallel_tool_calls=False), id="no tools"),
    pytest.param(CHAT, chat(tools=[tool(parameters={"pattern": "\\p{L}+"})]), id="ECMAScript's patterns"),
    pytest.param(CHAT, chat(max_tokens=5, max_completion_tokens=5, top_logprobs=0), id="equal limits"),
    pytest.param(COMPLETIONS, completion(prompt=[1] * (CONTEXT - 1)), id="B051 context - 1"),
    pytest.param(COMPLETIONS, completion(prompt=[1] * 200, max_tokens=56), id="B051 exact sum"),
    pytest.param(COMPLETIONS, completion(echo=True, max_tokens=0, logprobs=1), id="B048"),
    pytest.param(COMPLETIONS, completion(prompt=[0, VOCAB - 1], suffix="", logprobs=0), id="edge ids"),
    pytest.param(COMPLETIONS, completion(prompt=["a"] * 64, n=2), id="many prompts"),
]


@pytest.mark.parametrize(("path", "body"), ALLOWED)
async def test_allowed(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


async def test_broken_arguments_in_a_history_stay_text(http: httpx.AsyncClient, tokenizer: StubTokenizer) -> None:
    """B039."""
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"v": '}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"v": 1}'}},
        {"id": "c", "type": "function", "function": {"name": "g", "arguments": "[" * 100_000}},
    ]
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "broken"},
    ]
    assert (await http.post(CHAT, json=chat(messages=messages))).status_code == 200
    seen = [call["function"]["arguments"] for call in tokenizer.chats[-1]["messages"][1]["tool_calls"]]
    assert seen == ['{"v": ', {"v": 1}, "[" * 100_000]


async def test_no_template(http: httpx.AsyncClient, tokenizer: StubTokenizer) -> None:
    """B042."""
    tokenizer.has_chat_template = False  # type: ignore[misc]
    error = check_envelope(await http.post(CHAT, json=chat()), 400)
    assert error["code"] == "chat_template_missing"
    assert "/v1/completions" in error["message"]
