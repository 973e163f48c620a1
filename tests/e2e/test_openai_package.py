"""The openai package as its users use it: completions and chat, sync and async, streaming and not, many at once."""

from __future__ import annotations

import asyncio

import openai
import pytest
from support.server import ServerProcess

MODEL = "starter"


def sum_of(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {a} plus {b}?"}]


def test_models_lists_the_starter(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list().data]
    assert names == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat_answers_right(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=sum_of(20, 30), temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.role == "assistant"
    assert "50" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_is_the_whole_answer(client: openai.OpenAI) -> None:
    messages = sum_of(31, 42)
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)  # type: ignore[arg-type]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_completions_echo_logprobs_and_n(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=8, n=3, seed=7, temperature=1.0, logprobs=2, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.text.startswith("Once upon a time")
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.token_logprobs)
    assert len({choice.text for choice in answer.choices}) > 1


def test_stop_string_across_tokens(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 9."}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)  # type: ignore[arg-type]
    text = whole.choices[0].message.content or ""
    assert len(text) > 8, text
    stop = text[4:7]
    cut = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stop=[stop])  # type: ignore[arg-type]
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_tool_call_round_trip(client: openai.OpenAI) -> None:
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": "The city"}},
                    "required": ["city"],
                },
            },
        }
        for name, description in (
            ("get_weather", "Current weather in a city"),
            ("get_population", "Number of people who live in a city"),
        )
    ]
    messages: list[dict[str, object]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0)  # type: ignore[arg-type,call-overload]
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert "Paris" in call.function.arguments
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 17, "condition": "cloudy"}'},
    ]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0)  # type: ignore[arg-type,call-overload]
    assert second.choices[0].finish_reason == "stop"
    assert "17" in (second.choices[0].message.content or "")


async def test_sixty_four_at_once_each_its_own_answer(starter: ServerProcess, client: openai.OpenAI) -> None:
    pairs = [(10 + i, 80 - i) for i in range(64)]
    alone = {
        pair: client.chat.completions.create(model=MODEL, messages=sum_of(*pair), temperature=0)  # type: ignore[arg-type]
        for pair in pairs[::8]
    }
    async with openai.AsyncOpenAI(base_url=starter.url + "/v1", api_key="none", max_retries=0, timeout=120) as many:

        async def ask(pair: tuple[int, int], stream: bool) -> str:
            if not stream:
                answer = await many.chat.completions.create(model=MODEL, messages=sum_of(*pair), temperature=0)  # type: ignore[arg-type]
                return answer.choices[0].message.content or ""
            chunks = await many.chat.completions.create(
                model=MODEL,
                messages=sum_of(*pair),  # type: ignore[arg-type]
                temperature=0,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        answers = await asyncio.gather(*(ask(pair, i % 2 == 0) for i, pair in enumerate(pairs)))
    # All sums are 90; the operands, which every answer repeats, tell whose answer it is.
    right = sum(f"{a} + {b} = 90" in answer for (a, b), answer in zip(pairs, answers, strict=True))
    assert right >= 56, answers
    for pair, single in alone.items():
        assert answers[pairs.index(pair)] == single.choices[0].message.content


@pytest.mark.parametrize("field", [{"temperature": 3}, {"n": 0}, {"max_tokens": 10**6}])
def test_bad_requests_raise_the_packages_own_error(client: openai.OpenAI, field: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=sum_of(1, 2), **field)  # type: ignore[arg-type,call-overload]
    assert raised.value.body is not None
    assert next(iter(field)) in str(raised.value)
