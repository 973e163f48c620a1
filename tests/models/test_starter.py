"""The starter folder: complete, loadable; its template and tokenizer sound; its generator apart from heldout.json."""

import json
from random import Random
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from quire.models.starter.batches import Marker
from quire.models.starter.data.dialogue import dialogue, training_world
from quire.models.starter.data.world import World, held_out
from quire.models.starter.decoding import Sampling, decode
from quire.models.starter.model import load_model
from quire.models.starter.rendering import FOLDER, render

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def test_the_folder_is_complete_and_small() -> None:
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "heldout.json",
        "training.log",
        "train.py",
    ):
        assert (FOLDER / name).exists(), name
    assert (FOLDER / "model.safetensors").stat().st_size <= 16_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["max_position_embeddings"]) == (
        4,
        2,
        2048,
    )


def test_a_plain_exchange_renders_as_chatml() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(messages, None, True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_join_the_system_turn_one_line_each() -> None:
    line = "Tools:\nCurrent weather of a city: get_weather(city: string, unit?: celsius|fahrenheit)"
    assert render([{"role": "user", "content": "Hi"}], [WEATHER]).startswith(
        f"<|im_start|>system\n{line}<|im_end|>\n<|im_start|>user\n"
    )
    assert (
        render([{"role": "developer", "content": "Be kind."}], [WEATHER])
        == f"<|im_start|>system\nBe kind.\n\n{line}<|im_end|>\n"
    )


def test_a_tool_without_parameters_or_description_renders() -> None:
    assert "\nping()<|im_end|>" in render(
        [{"role": "user", "content": "Hi"}], [{"type": "function", "function": {"name": "ping"}}]
    )


@pytest.mark.parametrize("arguments", [{"city": "São Paulo"}, '{"city": "São Paulo"}'])
def test_calls_render_alike_from_objects_and_strings(arguments: Any) -> None:
    text = render(
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call(arguments)]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        [WEATHER],
        True,
    )
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "São Paulo"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    ) in text


def test_several_calls_follow_one_another_and_broken_arguments_pass_through() -> None:
    text = render([{"role": "assistant", "content": "One moment.", "tool_calls": [call('{"city": '), call({})]}])
    assert text == (
        '<|im_start|>assistant\nOne moment.\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": }\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call><|im_end|>\n'
    )


def test_text_parts_are_joined_and_consecutive_users_kept() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert render([{"role": "user", "content": parts}, {"role": "user", "content": "three"}]) == (
        "<|im_start|>user\none two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "message", [{"role": "wizard", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]}]
)
def test_what_the_template_cannot_render_raises(message: dict[str, Any]) -> None:
    with pytest.raises(TemplateError):
        render([message])


def test_any_text_survives_the_tokenizer_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    rng = Random(0)
    for _ in range(200):
        text = "".join(
            chr(
                rng.choice(
                    [rng.randrange(32, 127), rng.randrange(160, 0xD800), rng.randrange(0x1F300, 0x1FA00), 10, 9, 32]
                )
            )
            for _ in range(rng.randrange(1, 60))
        )
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert tokenizer.encode(" 4731", add_special_tokens=False).tokens[-4:] == ["4", "7", "3", "1"]
    assert len(tokenizer.encode("<tool_call></tool_call><|im_end|>", add_special_tokens=False).ids) == 3
    assert tokenizer.decode(tokenizer.encode("<tool_call>x<|im_end|>").ids, skip_special_tokens=True) == "<tool_call>x"


def test_a_name_has_the_same_tokens_in_prose_and_in_json(tokenizer: Tokenizer) -> None:
    prose, quoted = (
        tokenizer.encode(text, add_special_tokens=False).tokens for text in (" is Brunko.", '{"a": "Brunko"}')
    )
    name = prose[2:-1]
    assert prose[:2] == ["Ġis", "Ġ"]
    assert name
    assert any(quoted[index : index + len(name)] == name for index in range(len(quoted)))


def test_only_the_assistants_turns_are_marked(tokenizer: Tokenizer) -> None:
    text = render(
        [
            {"role": "user", "content": "assistant"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "x"},
        ]
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    marked = [token for token, mark in zip(ids, Marker(tokenizer).mark(ids), strict=True) if mark]
    assert tokenizer.decode(marked, skip_special_tokens=False) == "Hello<|im_end|>"


def test_training_text_never_shows_what_is_held_out() -> None:
    held, world = held_out(), training_world(99)
    names = {part for text in (*held.names, *held.cities) for part in text.split()}
    pairs = {f"{a} {sign} {b} =" for pair in held.pairs for a, b in (pair, pair[::-1]) for sign in "+-"}
    for _ in range(2000):
        sample = dialogue(world)
        text = render(sample.messages, sample.tools)
        words = set("".join(character if character.isalpha() else " " for character in text).split())
        assert not words & names
        assert not any(
            pair in text
            for message in sample.messages
            if message["role"] == "assistant" and not sample.tools
            for pair in pairs
            if pair in (message["content"] or "")
        )
        assert not any(tool["function"]["description"].split()[-1] in held.tool_nouns for tool in sample.tools)


def test_the_generator_is_determined_by_its_seed() -> None:
    first, second, other = (
        [dialogue(world) for _ in range(50)] for world in (training_world(5), training_world(5), training_world(6))
    )
    assert first == second
    assert first != other


def test_testing_draws_only_what_is_held_out() -> None:
    world = World(Random(3), held_out(), testing=True)
    assert {world.name() for _ in range(50)} <= set(held_out().names)
    assert {world.operands() for _ in range(50)} <= set(held_out().pairs)


def test_transformers_loads_the_folder_and_agrees(tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ours = load_model(FOLDER)
    ids = torch.tensor(
        [tokenizer.encode(render([{"role": "user", "content": "What is 12 + 30?"}], [WEATHER], True)).ids]
    )
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours.hidden(ids)), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_transformers_template_is_ours() -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    theirs = loaded.apply_chat_template(messages, tools=[WEATHER], add_generation_prompt=True, tokenize=False)
    assert theirs == render(messages, [WEATHER], True)


def test_padding_does_not_change_what_is_decoded(tokenizer: Tokenizer) -> None:
    model = load_model(FOLDER)
    prompts = [
        render([{"role": "user", "content": text}], None, True)
        for text in ("Hello", "What is the capital of France?", "Count from 3 to 6.")
    ]
    together = decode(model, tokenizer, prompts, Sampling(), 24)
    assert together == [decode(model, tokenizer, [prompt], Sampling(), 24)[0] for prompt in prompts]
