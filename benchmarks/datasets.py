"""What is asked: prompts of chosen lengths from a seed, or from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quire.benchmarks.backends import Message, Prompt, Request
from quire.benchmarks.words import Words

Count = Callable[[str], Awaitable[int]]
NAMES = ("random", "sharegpt", "prefix-repetition", "custom")
_SHORTEST, _LONGEST_PROMPT, _LONGEST = 4, 1024, 2048


class DatasetError(ValueError):
    """A file that cannot be read, or a length that cannot be."""


@dataclass(frozen=True)
class Choice:
    """Which data set, and its lengths in tokens. The names are those of the flags."""

    name: str = "random"
    path: Path | None = None
    seed: int = 0
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    sharegpt_output_len: int | None = None
    custom_output_len: int = 256
    prefix_repetition_prefix_len: int = 256
    prefix_repetition_suffix_len: int = 256
    prefix_repetition_num_prefixes: int = 10
    prefix_repetition_output_len: int = 128


async def load(choice: Choice, count: int, words: Words, *, as_text: bool, tokens_of: Count) -> list[Request]:
    """`count` requests; the same choice, count and words give the same ones. Raises DatasetError.

    `as_text`: the server takes no token ids. `tokens_of` counts the tokens of a text from a file.
    """
    if choice.name == "random":
        return random_requests(choice, count, words, as_text)
    if choice.name == "prefix-repetition":
        return repeated_prefixes(choice, count, words, as_text)
    if choice.path is None:
        raise DatasetError(f"--dataset-name {choice.name} needs --dataset-path FILE")
    if choice.name == "sharegpt":
        return await sharegpt(choice, count, tokens_of)
    return await custom(choice, count, tokens_of)


def random_requests(choice: Choice, count: int, words: Words, as_text: bool) -> list[Request]:
    """Lengths uniform within the range ratio around the given ones; all share the prefix, if there is one."""
    if not 0 <= choice.random_range_ratio < 1:
        raise DatasetError(f"--random-range-ratio must lie within 0 and 1, found {choice.random_range_ratio}")
    chooser = np.random.default_rng(choice.seed)
    inputs = _lengths(chooser, choice.random_input_len, choice.random_range_ratio, count)
    outputs = _lengths(chooser, choice.random_output_len, choice.random_range_ratio, count)
    prefix = chooser.integers(len(words), size=choice.random_prefix_len)
    requests: list[Request] = []
    for input_len, output_len in zip(inputs, outputs, strict=True):
        numbers = np.concatenate((prefix, chooser.integers(len(words), size=input_len)))
        requests.append(Request(words.prompt(numbers, as_text), len(numbers), output_len))
    return requests


def repeated_prefixes(choice: Choice, count: int, words: Words, as_text: bool) -> list[Request]:
    """A few prefixes, each with about equally many suffixes of its own, in random order."""
    chooser = np.random.default_rng(choice.seed)
    shape = (choice.prefix_repetition_num_prefixes, choice.prefix_repetition_prefix_len)
    prefixes = chooser.integers(len(words), size=shape)
    order = chooser.permutation(np.arange(count) % shape[0])
    requests: list[Request] = []
    for number in order:
        suffix = chooser.integers(len(words), size=choice.prefix_repetition_suffix_len)
        numbers = np.concatenate((prefixes[number], suffix))
        output_len = choice.prefix_repetition_output_len
        requests.append(Request(words.prompt(numbers, as_text), len(numbers), output_len))
    return requests


async def sharegpt(choice: Choice, count: int, tokens_of: Count) -> list[Request]:
    """The first question and answer of conversations in ShareGPT's format; the answer gives the output length.

    As everybody does with this file: pairs of fewer than 4 tokens a side, prompts above 1,024 and pairs above 2,048
    tokens are passed over.
    """
    conversations = _read_json(_file(choice))
    if not isinstance(conversations, list):
        raise DatasetError(f"{choice.path}: expected a list of conversations")
    pairs = [pair for conversation in conversations if (pair := _first_turns(conversation)) is not None]
    random.Random(choice.seed).shuffle(pairs)
    requests: list[Request] = []
    for question, reply in pairs:
        if len(requests) == count:
            break
        input_len = await tokens_of(question)
        output_len = choice.sharegpt_output_len or await tokens_of(reply)
        if input_len < _SHORTEST or output_len < _SHORTEST:
            continue
        if input_len <= _LONGEST_PROMPT and input_len + output_len <= _LONGEST:
            requests.append(Request(question, input_len, output_len))
    return _repeated(requests, count, choice)


async def custom(choice: Choice, count: int, tokens_of: Count) -> list[Request]:
    """A JSON object a line: `prompt` (text) or `messages`, and `output_tokens` where it differs from the flag's."""
    requests: list[Request] = []
    for number, line in enumerate(_file(choice).read_text().splitlines(), start=1):
        if not line.strip() or len(requests) == count:
            continue
        place = f"{choice.path} line {number}"
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{place}: {error}") from error
        prompt = _prompt(found, place)
        text = prompt if isinstance(prompt, str) else "\n".join(str(_content(message)) for message in prompt)
        limit = int(found.get("output_tokens") or choice.custom_output_len)
        requests.append(Request(prompt, await tokens_of(text), limit))
    return _repeated(requests, count, choice)


def _lengths(chooser: np.random.Generator, length: int, ratio: float, count: int) -> list[int]:
    low, high = int(length * (1 - ratio)), int(np.ceil(length * (1 + ratio)))
    lengths: list[int] = chooser.integers(max(1, low), max(1, high), size=count, endpoint=True).tolist()
    return lengths


def _file(choice: Choice) -> Path:
    if choice.path is None or not choice.path.is_file():
        raise DatasetError(f"--dataset-path {choice.path}: no such file")
    return choice.path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error


def _first_turns(conversation: Any) -> tuple[str, str] | None:
    turns = conversation.get("conversations") if isinstance(conversation, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    question, reply = (turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2])
    return (question, reply) if isinstance(question, str) and isinstance(reply, str) else None


def _prompt(found: Any, place: str) -> Prompt:
    if isinstance(found, dict) and isinstance(found.get("prompt"), str):
        return str(found["prompt"])
    messages = found.get("messages") if isinstance(found, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return tuple(messages)
    raise DatasetError(f'{place}: expected an object with "prompt" (text) or "messages"')


def _content(message: Message | int) -> Any:
    return message.get("content", "") if not isinstance(message, int) else ""


def _repeated(requests: Sequence[Request], count: int, choice: Choice) -> list[Request]:
    """From the beginning again where the file has fewer than are wanted."""
    if not requests:
        raise DatasetError(f"{choice.path}: no prompt that can be used")
    return [requests[number % len(requests)] for number in range(count)]
