"""Frames byte by byte, and that the whole answer is the fold of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.stub_engine import StubEngine, words

from quire.engine.messages import Failure
from quire.engine.outputs import GenerateRequest, RequestFailed, TextDelta

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}


def frames_of(response: httpx.Response) -> list[Any]:
    """The JSON of every frame; asserts that the framing is exact and ends with [DONE]."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    text = response.content.decode()
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert "\r" not in text
    frames = text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def spell(*pieces: str, finish: str = "stop") -> Callable[[GenerateRequest], list[TextDelta]]:
    return lambda request: words(request, pieces, finish=finish)


async def test_chat_frames_are_exact(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = spell("Hel", 'lo "\u00e9\U0001f600"\n')
    response = await http.post(CHAT, json={**ASK, "stream": True, "stream_options": {"include_usage": True}})
    frames_of(response)
    text = response.content.decode()
    answer_id = re.search(r"chatcmpl-[0-9a-f]{32}", text)
    created = re.search(r'"created":(\d+)', text)
    fingerprint = re.search(r"fp_[0-9a-f]{12}", text)
    assert answer_id
    assert created
    assert fingerprint
    head = (
        f'data: {{"id":"{answer_id[0]}","object":"chat.completion.chunk","created":{created[1]},"model":"stub",'
        f'"system_fingerprint":"{fingerprint[0]}","choices":['
    )
    assert text == (
        head + '{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{"content":"lo \\"\u00e9\U0001f600\\"\\n"},"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        + head + '],"usage":{"prompt_tokens":6,"completion_tokens":15,"total_tokens":21,'
        '"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
        "data: [DONE]\n\n"
    )  # fmt: skip


async def test_completion_frames_are_exact(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = spell("ab", "c", finish="length")
    response = await http.post(COMPLETIONS, json={"model": "stub", "prompt": "x", "stream": True})
    frames_of(response)
    bare = re.sub(r'"id":"cmpl-[0-9a-f]{32}","object":"text_completion","created":\d+', "ID", response.text)
    bare = re.sub(r'"system_fingerprint":"fp_[0-9a-f]{12}"', "FP", bare)
    assert bare == (
        'data: {ID,"model":"stub",FP,"choices":[{"index":0,"text":"ab","finish_reason":null}]}\n\n'
        'data: {ID,"model":"stub",FP,"choices":[{"index":0,"text":"c","finish_reason":"length"}]}\n\n'
        "data: [DONE]\n\n"
    )


async def test_each_frame_is_a_write_of_its_own(app: Any, engine: StubEngine) -> None:
    engine.script = spell("a", "b")
    sent: list[dict[str, Any]] = []
    body = json.dumps({**ASK, "stream": True}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        try:
            return next(messages)
        except StopIteration:
            await asyncio.Event().wait()
            raise AssertionError from None

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    await app({"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}, receive, send)
    bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
    assert [body.count(b"data: ") for body in bodies] == [1] * 5 + [0]
    assert bodies[-2] == b"data: [DONE]\n\n"


async def test_continuous_usage(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = spell("a", "b", "c")
    options = {"continuous_usage_stats": True}
    frames = frames_of(await http.post(CHAT, json={**ASK, "stream": True, "stream_options": options}))
    assert [frame["usage"]["completion_tokens"] for frame in frames] == [1, 1, 2, 3, 3]
    assert all(frame["choices"] for frame in frames)


# --- the fold


def fold_chat(frames: list[Any]) -> dict[int, dict[str, Any]]:
    """An independent fold, as a client does it."""
    choices: dict[int, dict[str, Any]] = {}
    for frame in frames:
        for part in frame["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "calls": {}, "tokens": [], "ids": []})
            choice["content"] += part["delta"].get("content") or ""
            for call in part["delta"].get("tool_calls", ()):
                known = choice["calls"].setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                known["id"] += call.get("id", "")
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"].get("arguments", "")
            choice["tokens"] += part.get("logprobs", {"content": []})["content"]
            choice["ids"] += part.get("token_ids", [])
            choice["finish_reason"] = part["finish_reason"] or choice.get("finish_reason")
    return choices


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"logprobs": True},
        {"return_token_ids": True, "prompt_logprobs": 1},
    ],
)
async def test_whole_chat_is_the_fold_of_the_stream(
    http: httpx.AsyncClient, engine: StubEngine, extra: dict[str, Any]
) -> None:
    engine.script = spell("Once", " upon", "", " a \u00fc", "", " time")
    whole = (await http.post(CHAT, json={**ASK, **extra})).json()
    stream = frames_of(
        await http.post(CHAT, json={**ASK, **extra, "stream": True, "stream_options": {"include_usage": True}})
    )
    folded = fold_chat(stream)
    assert stream[-1]["usage"] == whole["usage"]
    assert sorted(folded) == [choice["index"] for choice in whole["choices"]] == list(range(extra.get("n", 1)))
    for choice in whole["choices"]:
        parts = folded[choice["index"]]
        assert choice["message"] == {"role": "assistant", "content": "Once upon a \u00fc time"}
        assert parts["content"] == choice["message"]["content"]
        assert parts["finish_reason"] == choice["finish_reason"] == "stop"
        assert parts["tokens"] == (choice["logprobs"] or {"content": []})["content"]
        assert parts["ids"] == choice.get("token_ids", [])
    for field in ("prompt_token_ids", "prompt_logprobs"):
        assert [frame[field] for frame in stream if field in frame] == ([whole[field]] if field in whole else [])


async def test_chat_logprobs(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = spell("\u00fc")
    choice = (await http.post(CHAT, json={**ASK, "logprobs": True, "top_logprobs": 1})).json()["choices"][0]
    first, second = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert bytes(first["bytes"] + second["bytes"]).decode() == "\u00fc"
    assert set(first) == {"token", "logprob", "bytes", "top_logprobs"}
    assert set(first["top_logprobs"][0]) == {"token", "logprob", "bytes"}


async def test_completion_with_everything(http: httpx.AsyncClient, engine: StubEngine) -> None:
    """Prompts x n, echo, logprobs and offsets; streamed and whole agree."""
    engine.script = spell("x\u00fc", "y", finish="length")
    body = {"model": "stub", "prompt": ["ab", "c"], "n": 2, "echo": True, "logprobs": 2, "return_token_ids": True}
    whole = (await http.post(COMPLETIONS, json=body)).json()
    stream = frames_of(await http.post(COMPLETIONS, json={**body, "stream": True}))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in whole["choices"]] == ["abx\u00fcy", "abx\u00fcy", "cx\u00fcy", "cx\u00fcy"]
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == 16
    first = whole["choices"][0]
    assert first["logprobs"]["tokens"] == ["a", "b", "x", "\ufffd", "\ufffd", "y"]
    assert first["logprobs"]["text_offset"] == [0, 1, 2, 3, 3, 4]
    assert first["logprobs"]["token_logprobs"][0] is None
    assert first["logprobs"]["top_logprobs"][0] is None
    assert all(value is not None for value in first["logprobs"]["token_logprobs"][1:])
    assert len(first["logprobs"]["top_logprobs"][1]) == 2
    assert first["prompt_token_ids"] == [97, 98]
    assert first["token_ids"] == list("x\u00fcy".encode())
    assert "prompt_logprobs" not in first
    for choice in whole["choices"]:
        parts = [part for frame in stream for part in frame["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for part in parts for item in part["logprobs"][field]] == choice["logprobs"][field]


async def test_echo_alone_scores_the_prompt(http: httpx.AsyncClient, engine: StubEngine) -> None:
    """What lm-eval asks: max_tokens 0."""
    engine.script = spell("z", finish="length")
    body = {"model": "stub", "prompt": [97, 98, 99], "echo": True, "max_tokens": 0, "logprobs": 1, "prompt_logprobs": 1}
    answer = (await http.post(COMPLETIONS, json=body)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["finish_reason"] == "length"
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1]["98"] == {"logprob": -0.5, "rank": 1, "decoded_token": "b"}
    assert answer["usage"]["completion_tokens"] == 0


async def test_choices_wait_for_the_prompts_logprobs(http: httpx.AsyncClient, engine: StubEngine) -> None:
    """Choice 1 may overtake choice 0, which alone carries them."""
    engine.script = lambda request: sorted(words(request, ["a", "b"]), key=lambda delta: -delta.choice)
    body = {"model": "stub", "prompt": "pq", "n": 2, "echo": True, "logprobs": 0}
    answer = (await http.post(COMPLETIONS, json=body)).json()
    assert [choice["logprobs"]["tokens"] for choice in answer["choices"]] == [["p", "q", "a", "b"]] * 2


async def test_stop_reason(http: httpx.AsyncClient, engine: StubEngine) -> None:
    def script(request: GenerateRequest) -> list[TextDelta]:
        delta = TextDelta(
            choice=0, text="a", token_ids=(97,), num_output_tokens=1, finish_reason="stop", stop_reason="END"
        )
        return [delta]

    engine.script = script
    assert (await http.post(CHAT, json=ASK)).json()["choices"][0]["stop_reason"] == "END"
    assert frames_of(await http.post(CHAT, json={**ASK, "stream": True}))[-1]["choices"][0]["stop_reason"] == "END"


# --- tool calls

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "sub")]
TWO_CALLS = (
    'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x}"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
)


@pytest.mark.parametrize("size", [1, 3, 7, 500])
async def test_tool_calls(http: httpx.AsyncClient, engine: StubEngine, size: int) -> None:
    pieces = [TWO_CALLS[i : i + size] for i in range(0, len(TWO_CALLS), size)]
    engine.script = spell(*pieces)
    whole = (await http.post(CHAT, json={**ASK, "tools": TOOLS})).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"].strip() == "Let me see."
    calls = whole["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["add", "sub"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1, "b": "x}"}
    assert json.loads(calls[1]["function"]["arguments"]) == {}
    assert {call["type"] for call in calls} == {"function"}
    assert len({call["id"] for call in calls}) == 2
    folded = fold_chat(frames_of(await http.post(CHAT, json={**ASK, "tools": TOOLS, "stream": True})))[0]
    assert folded["finish_reason"] == "tool_calls"
    assert folded["content"] == whole["message"]["content"]
    assert [(call["name"], call["arguments"]) for _, call in sorted(folded["calls"].items())] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in calls
    ]
    one = (await http.post(CHAT, json={**ASK, "tools": TOOLS, "parallel_tool_calls": False})).json()["choices"][0]
    assert [call["function"]["name"] for call in one["message"]["tool_calls"]] == ["add"]


async def test_without_tools_text_stays_text(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = spell(TWO_CALLS)
    for extra in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = (await http.post(CHAT, json={**ASK, **extra})).json()["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": TWO_CALLS}
        assert choice["finish_reason"] == "stop"


# --- failures


def failing(after: int, error: Exception) -> Callable[[GenerateRequest], Any]:
    def script(request: GenerateRequest) -> Any:
        for number, delta in enumerate(words(request, ["a", "b", "c", "d"])):
            if number == after:
                raise error
            yield delta
        raise error

    return script


RESTARTING = RequestFailed(Failure("engine_restarting", "the engine died", 503), 3.0)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK), (COMPLETIONS, {"model": "stub", "prompt": ["a", "b"]})])
async def test_failure_after_the_200(
    http: httpx.AsyncClient, engine: StubEngine, path: str, body: dict[str, Any], after: int
) -> None:
    """F24: exactly one error frame, then [DONE]."""
    engine.script = failing(after, RESTARTING)
    response = await http.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    frames = frames_of(response)
    errors = [frame["error"] for frame in frames if "error" in frame]
    assert errors == [frames[-1]["error"]]
    assert errors[0]["code"] == "engine_restarting"
    assert errors[0]["type"] == "service_unavailable_error"
    assert engine.active == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_token(http: httpx.AsyncClient, engine: StubEngine, stream: bool) -> None:
    engine.script = failing(0, RESTARTING)
    response = await http.post(CHAT, json={**ASK, "stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_restarting"
    assert 2 <= int(response.headers["retry-after"]) <= 4


@pytest.mark.parametrize(
    ("reason", "failure", "status", "code"),
    [
        ("timeout", None, 504, "request_timeout"),
        ("error", Failure("model_numerics", "NaN", 500), 500, "model_numerics"),
        ("aborted", None, 500, "internal_error"),
    ],
)
async def test_choices_that_end_badly(
    http: httpx.AsyncClient, engine: StubEngine, reason: Any, failure: Failure | None, status: int, code: str
) -> None:
    engine.script = lambda request: [
        TextDelta(choice=0, text="", token_ids=(), num_output_tokens=0, finish_reason=reason, failure=failure)
    ]
    response = await http.post(CHAT, json=ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_a_fault_of_ours_is_an_envelope_without_details(
    http: httpx.AsyncClient, engine: StubEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = failing(0, RuntimeError("secret path /root"))
    response = await http.post(CHAT, json=ASK)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret path" in caplog.text
