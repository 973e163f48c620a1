"""What reaches the engine from a request: fields, defaults, limits; and what becomes of fields that nobody reads."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import CONTEXT, StubEngine, StubTokenizer

from quire.engine.sampling_params import SamplingParams
from quire.server.app import create_app
from quire.server.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    DETOKENIZE_FIELDS,
    HARMLESS,
    TOKENIZE_FIELDS,
    WHY,
    Kind,
    nearest,
)
from quire.server.settings import ServerSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "stub", "prompt": "hi"}

# CONVENTIONS, section 2: what completions take, and what chat adds.
COMPLETIONS_TAKE = """
    model prompt echo logprobs max_tokens n stop stream stream_options suffix seed temperature top_p top_k min_p
    presence_penalty frequency_penalty repetition_penalty logit_bias user ignore_eos min_tokens stop_token_ids
    include_stop_str_in_output skip_special_tokens allowed_token_ids bad_words prompt_logprobs return_token_ids
    truncate_prompt_tokens priority deadline_ms cache_salt structured_outputs response_format
"""
CHAT_ADDS = """
    messages max_completion_tokens tools tool_choice parallel_tool_calls response_format logprobs top_logprobs
    chat_template_kwargs add_generation_prompt continue_final_message reasoning_effort
"""
ACCEPTED_WITHOUT_EFFECT = "store metadata service_tier verbosity prompt_cache_key safety_identifier"


def app_with(engine: StubEngine, defaults: Any = None, **settings: Any) -> httpx.AsyncClient:
    app = create_app(ServerSettings(served_model_name=["stub"], **settings), engine, StubTokenizer(), defaults=defaults)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")


# --- the tables


def test_every_field_that_users_expect_is_in_a_table() -> None:
    assert set(COMPLETIONS_TAKE.split()) <= set(COMPLETION_FIELDS)
    chat_takes = {*COMPLETIONS_TAKE.split(), *CHAT_ADDS.split(), *ACCEPTED_WITHOUT_EFFECT.split()} - {
        "prompt",
        "echo",
        "suffix",
    }
    assert chat_takes <= set(CHAT_FIELDS)
    assert all(CHAT_FIELDS[name] is Kind.NO_EFFECT for name in ACCEPTED_WITHOUT_EFFECT.split())
    for name in SamplingParams.__struct_fields__:
        assert CHAT_FIELDS[name] is COMPLETION_FIELDS[name] is Kind.SUPPORTED


def test_exceptions_are_about_unsupported_fields() -> None:
    unsupported = {
        name
        for table in (CHAT_FIELDS, COMPLETION_FIELDS, TOKENIZE_FIELDS, DETOKENIZE_FIELDS)
        for name, kind in table.items()
        if kind is Kind.UNSUPPORTED
    }
    assert set(HARMLESS) <= unsupported
    assert set(WHY) <= unsupported


@pytest.mark.parametrize(("path", "ask", "table"), [(CHAT, ASK, CHAT_FIELDS), (COMPLETIONS, PROMPT, COMPLETION_FIELDS)])
async def test_unsupported_fields_are_refused_unless_they_ask_for_nothing(
    http: httpx.AsyncClient, engine: StubEngine, path: str, ask: dict[str, Any], table: dict[str, Kind]
) -> None:
    for name in (name for name, kind in table.items() if kind is Kind.UNSUPPORTED):
        error = (await http.post(path, json={**ask, name: {"x": 1}})).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert engine.requests == []
        for value in (None, *HARMLESS.get(name, ())):
            assert (await http.post(path, json={**ask, name: value})).status_code == 200
        engine.requests.clear()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("temprature", "temperature"),
        ("message", "messages"),
        ("stop_sequences_x", None),
        ("foo", None),
        ("x", None),
        ("timeout", None),
        ("extra_body", None),
        ("thought_signature", None),
    ],
)
def test_nearest(name: str, known: str | None) -> None:
    assert nearest(name, CHAT_FIELDS) == known


async def test_ignored_fields_are_named(http: httpx.AsyncClient) -> None:
    message = {"role": "user", "content": "hi", "mood": "good", "refusal": None, "annotations": []}
    body = {**ASK, "messages": [message], "zebra": 1, "na\u00efve, \r\n": 2}
    response = await http.post(CHAT, json=body)
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "zebra, na\\xefve\\x2c \\r\\n, messages[0].mood"
    streamed = await http.post(CHAT, json={**body, "stream": True})
    assert "zebra" in streamed.headers["x-ignored-fields"]
    many = await http.post(COMPLETIONS, json={**PROMPT, **{f"zebra{i}": 1 for i in range(100)}})
    assert many.headers["x-ignored-fields"].endswith("and 80 more")


async def test_strict_refuses_them(engine: StubEngine) -> None:
    async with app_with(engine, strict=True) as http:
        for body in ({**ASK, "zebra": 1}, {**ASK, "messages": [{"role": "user", "content": "x", "mood": 1}]}):
            response = await http.post(CHAT, json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_parameter")
            assert "--strict" in response.json()["error"]["message"]
    assert engine.requests == []


# --- what the engine gets


async def test_every_sampling_field_arrives(http: httpx.AsyncClient, engine: StubEngine) -> None:
    fields = {
        "n": 2,
        "max_tokens": 9,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.1,
        "seed": -5,
        "prompt_logprobs": 1,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "ignore_eos": True,
    }
    more = {"stop": ["a", "b"], "stop_token_ids": [5, 5], "allowed_token_ids": [1, 2], "logit_bias": {"3": -1.5}}
    for path, ask, logprobs in (
        (CHAT, ASK, {"logprobs": True, "top_logprobs": 3}),
        (COMPLETIONS, PROMPT, {"logprobs": 3}),
    ):
        response = await http.post(path, json={**ask, **fields, **more, **logprobs, "bad_words": ["no"]})
        assert response.status_code == 200, response.text
        params = engine.requests[-1].params
        for name, value in fields.items():
            assert getattr(params, name) == value, name
        assert params.stop == ("a", "b")
        assert params.stop_token_ids == (5,)
        assert params.allowed_token_ids == (1, 2)
        assert params.logit_bias == {3: -1.5}
        assert params.logprobs == 3
        assert params.bad_words == (tuple(b"no"), tuple(b" no"))


async def test_defaults(engine: StubEngine) -> None:
    defaults = SimpleNamespace(temperature=0.6, top_k=20, top_p=None, min_p=None, repetition_penalty=1.2)
    async with app_with(engine, defaults) as http:
        await http.post(CHAT, json=ASK)
        await http.post(CHAT, json={**ASK, "temperature": 1, "top_k": 0})
        await http.post(COMPLETIONS, json=PROMPT)
    async with app_with(engine, defaults, generation_config="none") as http:
        await http.post(CHAT, json=ASK)
    first, second, third, plain = (request.params for request in engine.requests)
    assert (first.temperature, first.top_k, first.top_p, first.repetition_penalty) == (0.6, 20, 1.0, 1.2)
    assert (second.temperature, second.top_k) == (1, 0)
    assert (plain.temperature, plain.top_k, plain.repetition_penalty) == (1.0, 0, 1.0)
    assert first.stop_token_ids == (257,), "the model's own end"
    assert first.max_tokens == CONTEXT - len(engine.requests[0].prompt_token_ids), "2048 cut to the context"
    assert third.max_tokens == 16
    assert None not in {first.seed, second.seed, third.seed}
    assert first.seed != second.seed


async def test_stop_as_one_string(http: httpx.AsyncClient, engine: StubEngine) -> None:
    await http.post(CHAT, json={**ASK, "stop": "END", "max_completion_tokens": 3, "priority": -2, "deadline_ms": 5000})
    request = engine.requests[0]
    assert request.params.stop == ("END",)
    assert request.params.max_tokens == 3
    assert request.priority == -2
    assert request.deadline is not None


@pytest.mark.parametrize(("keep", "length"), [(5, 5), (500, 300), (-1, CONTEXT - 4)])
async def test_truncation(http: httpx.AsyncClient, engine: StubEngine, keep: int, length: int) -> None:
    ids = [i % 100 for i in range(300)]
    body = {**PROMPT, "prompt": ids, "truncate_prompt_tokens": keep, "max_tokens": 4, "return_token_ids": True}
    response = await http.post(COMPLETIONS, json=body)
    if length == 300:
        assert response.json()["error"]["code"] == "context_length_exceeded"
        return
    assert engine.requests[0].prompt_token_ids == ids[-length:]
    assert response.json()["choices"][0]["prompt_token_ids"] == ids[-length:]


async def test_messages_in_the_shape_of_templates(http: httpx.AsyncClient, tokenizer: StubTokenizer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "rules"}, {"role": "user", "content": parts, "name": "Ann"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {**ASK, "messages": messages, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    await http.post(CHAT, json=body)
    seen = tokenizer.chats[-1]
    assert seen["messages"] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "a\nb", "name": "Ann"},
    ]
    assert seen["tools"] == tools
    assert seen["kwargs"] == {"enable_thinking": False}
    await http.post(CHAT, json={**body, "tool_choice": "none"})
    assert tokenizer.chats[-1]["tools"] is None


async def test_continue_final_message(http: httpx.AsyncClient, tokenizer: StubTokenizer) -> None:
    messages = [*ASK["messages"], {"role": "assistant", "content": "The"}]
    await http.post(CHAT, json={**ASK, "messages": messages, "continue_final_message": True})
    assert tokenizer.chats[-1]["continue_final_message"] is True
    assert tokenizer.chats[-1]["add_generation_prompt"] is False


async def test_tools_switched_off(engine: StubEngine) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with app_with(engine, enable_auto_tool_choice=False) as http:
        error = (await http.post(CHAT, json={**ASK, "tools": tools})).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")
        assert (await http.post(CHAT, json={**ASK, "tools": tools, "tool_choice": "none"})).status_code == 200


async def test_prompts_are_logged_only_when_asked(engine: StubEngine, caplog: pytest.LogCaptureFixture) -> None:
    """F55, G21."""
    caplog.set_level("DEBUG")
    key = "sentinel-key-0123456789"
    headers = {"authorization": f"Bearer {key}", "x-request-id": "trace-7"}
    body = {**ASK, "messages": [{"role": "user", "content": "sentinel-prompt"}]}
    for switch in (False, True):
        caplog.clear()
        async with app_with(engine, api_key=[key], enable_log_requests=switch) as http:
            metrics = (await http.get("/metrics", headers=headers)).text
            for path in (CHAT, COMPLETIONS, "/nope"):
                for bad in ({}, {"temperature": 9}):
                    response = await http.post(path, json={**body, **bad}, headers=headers)
                    assert key not in response.text
                    assert "sentinel-prompt" not in response.text or response.status_code == 200
        assert ("sentinel-prompt" in caplog.text) is switch
        assert ("trace-7" in caplog.text) is switch
        assert key not in caplog.text + metrics


# --- a small fuzz

ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        2**31,
        2**63,
        10**30,
        -(10**18),
        1e308,
        1e-300,
        "",
        "x",
        "\x00",
        "\ufffd",
        "é" * 50,
    ),
    *([], [[]], [1], ["a"], [None], [{}], {}, {"a": 1}, {"1": 1}, {"type": "text"}, {"role": "user"}, "x" * 5000),
]


def random_body(choice: random.Random, ask: dict[str, Any], names: list[str]) -> Any:
    body: dict[str, Any] = dict(ask)
    for _ in range(choice.randrange(1, 5)):
        value = choice.choice(ODD)
        if choice.random() < 0.3:
            value = [value, choice.choice(ODD)] if choice.random() < 0.5 else {choice.choice(names): value}
        body[choice.choice(names)] = value
    if choice.random() < 0.1:
        body.pop(choice.choice(list(body)))
    return body


@pytest.mark.parametrize("seed", range(4))
async def test_fuzz(app: FastAPI, http: httpx.AsyncClient, seed: int) -> None:
    """G5 in small: no 5xx, no broken envelope, whatever the body."""
    choice = random.Random(seed)
    refused = 0
    for _ in range(150):
        path, ask, table = choice.choice([(CHAT, ASK, CHAT_FIELDS), (COMPLETIONS, PROMPT, COMPLETION_FIELDS)])
        raw = json.dumps(random_body(choice, ask, list(table))).encode()
        if choice.random() < 0.2:
            at = choice.randrange(len(raw))
            raw = raw[:at] + bytes([choice.randrange(256)]) + raw[at + 1 :]
        response = await http.post(path, content=raw, headers={"content-type": "application/json"})
        assert response.status_code < 500, (raw, response.text)
        if response.status_code != 200:
            refused += 1
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert isinstance(error["code"], str), raw
    assert refused > 50
