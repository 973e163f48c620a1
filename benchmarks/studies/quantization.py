"""What smaller weights and a smaller cache cost in quality, on answers that the starter model was never shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quire.benchmarks.figure import figure
from quire.benchmarks.studies.settings import Settings
from quire.engine.llm import LLM
from quire.engine.model_folder import STARTER
from quire.engine.sampling_params import SamplingParams

VARIANTS: tuple[dict[str, str], ...] = (
    {"dtype": "float32", "kv_cache_dtype": "float32"},
    {"kv_cache_dtype": "float32"},
    {},
    {"kv_cache_dtype": "float16"},
    {"kv_cache_dtype": "int8"},
    {"quantization": "int8"},
    {"quantization": "int8-w8a8"},
    {"quantization": "int4"},
    {"quantization": "int4", "kv_cache_dtype": "int8"},
)
"""The first is what all are compared with. Without options: bfloat16, as the checkpoint."""
HELD_OUT = "heldout.json"
_WRITTEN = ("capital", "sorting", "letters", "counting", "tools", "json")
"""Families of the file that hold the whole answer."""


class Variant(msgspec.Struct, frozen=True):
    """One way to store the model."""

    weights: str
    cache: str
    weights_bytes: int
    cache_bytes_per_token: float
    perplexity: float
    """Of the answers' tokens."""
    mean_difference: float
    """Of a token's log probability from the first variant's."""
    largest_difference: float
    same_first: float
    """Share of tokens at which both have the same most likely one."""


class Result(msgspec.Struct, frozen=True):
    """All of them."""

    model: str
    answers: int
    tokens: int
    variants: list[Variant]


class _Scores(msgspec.Struct, frozen=True):
    logprobs: list[float]
    firsts: list[int]


def measure(settings: Settings) -> Result:
    """Each variant reads the same dialogues; the log probabilities of the answers' tokens are compared."""
    folder = Path(settings.model or STARTER)
    dialogues = list(_dialogues(json.loads((folder / HELD_OUT).read_text())["prompts"]))
    dialogues = dialogues[:: len(dialogues) // 4] if settings.tiny else dialogues
    variants: list[Variant] = []
    base: _Scores | None = None
    for options in VARIANTS[::3] if settings.tiny else VARIANTS:
        with LLM(folder, max_model_len=1024, max_num_seqs=16, enable_prefix_caching=False, **options) as llm:
            scores = _score(llm, dialogues)
            base = base or scores
            facts = llm.facts
            tokens = facts.num_blocks * facts.block_size
            differences = [abs(one - other) for one, other in zip(scores.logprobs, base.logprobs, strict=True)]
            same = sum(one == other for one, other in zip(scores.firsts, base.firsts, strict=True))
            variants.append(
                Variant(
                    facts.dtype,
                    options.get("kv_cache_dtype", "bfloat16"),
                    facts.weights_bytes,
                    facts.kv_cache_bytes / tokens,
                    math.exp(-sum(scores.logprobs) / len(scores.logprobs)),
                    sum(differences) / len(differences),
                    max(differences),
                    same / len(differences),
                )
            )
    assert base is not None
    return Result(folder.name, len(dialogues), len(base.logprobs), variants)


def _dialogues(prompts: Sequence[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], list[Any] | None]]:
    """(messages that end with the assistant's, tools)."""
    for prompt in prompts:
        family, expected = prompt["family"], prompt["expect"]
        if family not in _WRITTEN:
            continue
        answer: dict[str, Any] = {"role": "assistant", "content": expected}
        if family == "json":
            answer["content"] = json.dumps(expected, ensure_ascii=False)
        if family == "tools":
            answer = {"role": "assistant", "content": None, "tool_calls": [{"function": expected["call"]}]}
        yield [*prompt["messages"], answer], prompt.get("tools")


def _score(llm: LLM, dialogues: Sequence[tuple[list[dict[str, Any]], list[Any] | None]]) -> _Scores:
    """Log probability of every token of the answers, and the token that was the most likely there."""
    whole, begins = [], []
    for messages, tools in dialogues:
        asked = llm.tokenizer.encode_chat(messages[:-1], tools=tools)
        whole.append(llm.tokenizer.encode_chat(messages, tools=tools, add_generation_prompt=False))
        begins.append(len(asked))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    logprobs: list[float] = []
    firsts: list[int] = []
    for output, begin in zip(llm.generate(whole, params), begins, strict=True):
        assert output.prompt_logprobs is not None
        for token in output.prompt_logprobs[begin:]:
            assert token is not None
            assert token.logprob is not None
            logprobs.append(token.logprob)
            firsts.append(token.top[0].token_id)
    return _Scores(logprobs, firsts)


def draw(result: Result, path: Path) -> None:
    """Bytes of the weights against perplexity."""
    with figure(path, title="What smaller weights cost", size=(7.2, 4.4)) as (axes,):
        shown = [one for one in result.variants if one.cache == "bfloat16" or one is result.variants[0]]
        for place, one in enumerate(shown):
            axes.scatter([one.weights_bytes / 2**20], [one.perplexity], s=60, color=f"C{place}", zorder=3)
            axes.annotate(one.weights, (one.weights_bytes / 2**20, one.perplexity), xytext=(8, 6),
                          textcoords="offset points")  # fmt: skip
        axes.set(xlabel="MiB of weights", ylabel="perplexity of held-out answers")
        axes.set_xlim(left=0, right=1.2 * max(one.weights_bytes for one in shown) / 2**20)


def table(result: Result) -> str:
    """One row a variant."""
    rows = [
        "| weights | cache | MiB of weights | bytes a token | perplexity | mean difference | largest | same first |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {one.weights} | {one.cache} | {one.weights_bytes / 2**20:.2f} | {one.cache_bytes_per_token:.0f} "
        f"| {one.perplexity:.4f} | {one.mean_difference:.4f} | {one.largest_difference:.2f} | {one.same_first:.2%} |"
        for one in result.variants
    ]
    return "\n".join(rows)
