"""`quire bench offline`: throughput of `LLM` in this process, without a server.

All prompts are given at once; answers have the lengths that were ordered. The line and the JSON keys are the field's.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from quire.benchmarks import datasets
from quire.benchmarks.backends import Request
from quire.benchmarks.gpu_engine import GpuEngine
from quire.benchmarks.shapes import SHAPES, write_shape
from quire.benchmarks.words import TooFewWords, Words, guessed, learn
from quire.clients.terminal import USAGE, CommandFailed, Parser
from quire.engine.llm import LLM
from quire.engine.sampling_params import SamplingParams

_ENGINE = ("load_format", "device", "gpu_memory_utilization", "enforce_eager", "batch_invariant", "dtype",
           "quantization", "kv_cache_dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
           "kv_cache_memory_bytes", "block_size", "enable_prefix_caching", "threads")  # fmt: skip


class Result(msgspec.Struct, frozen=True):
    """One run."""

    elapsed_time: float
    num_requests: int
    total_num_tokens: int
    """Prompts and answers."""
    total_output_tokens: int
    requests_per_second: float
    tokens_per_second: float
    output_tokens_per_second: float

    def line(self) -> str:
        """As the field prints it."""
        return (
            f"Throughput: {self.requests_per_second:.2f} requests/s, {self.tokens_per_second:.2f} total tokens/s, "
            f"{self.output_tokens_per_second:.2f} output tokens/s"
        )


def main(words: list[str]) -> int:
    """Run it and print the line; with --output-json, write the figures."""
    options = _parser().parse(words)
    given = {name: getattr(options, name) for name in _ENGINE if getattr(options, name) is not None}
    result = _of_shape(options, given) if options.shape is not None else _of_model(options, given)
    print(result.line())
    print(f"Total num prompt tokens:  {result.total_num_tokens - result.total_output_tokens}")
    print(f"Total num output tokens:  {result.total_output_tokens}")
    if options.output_json is not None:
        options.output_json.write_text(json.dumps(msgspec.to_builtins(result), indent=1) + "\n")
    return 0


def _of_model(options: Namespace, given: dict[str, Any]) -> Result:
    with LLM(options.model, **given) as llm:
        requests = asyncio.run(_requests(llm, options))
        return measure(llm, requests, options.temperature, use_tqdm=not options.disable_tqdm)


def _of_shape(options: Namespace, given: dict[str, Any]) -> Result:
    """Random weights and random tokens, without text."""
    if options.model is not None or options.load_format != "dummy":
        raise CommandFailed("--shape: it has no weights; say --load-format dummy, and no --model", USAGE)
    if options.dataset_name != "random":
        raise CommandFailed(f"--dataset-name {options.dataset_name}: --shape has no tokenizer; use random", USAGE)
    with tempfile.TemporaryDirectory() as folder:
        engine = GpuEngine(options.shape, write_shape(options.shape, Path(folder)), **{"device": "cpu"} | given)
    chooser, spread = random.Random(options.seed), options.random_range_ratio

    def around(length: int) -> int:
        return chooser.randint(max(1, round(length * (1 - spread))), round(length * (1 + spread)))

    lengths = [(around(options.input_len), around(options.output_len)) for _ in range(options.num_prompts)]
    seconds = engine.all_at_once(lengths)[0]
    outputs = sum(answer for _, answer in lengths)
    tokens = outputs + sum(prompt for prompt, _ in lengths)
    count = len(lengths)
    return Result(seconds, count, tokens, outputs, count / seconds, tokens / seconds, outputs / seconds)


def measure(llm: LLM, requests: list[Request], temperature: float, *, use_tqdm: bool = False) -> Result:
    """Answer all requests at once. Raises CommandFailed when one of them cannot be answered."""
    prompts = [_prompt(llm, request) for request in requests]
    params = [
        SamplingParams(max_tokens=request.output_tokens, temperature=temperature, ignore_eos=True, seed=number)
        for number, request in enumerate(requests)
    ]
    begun = perf_counter()
    try:
        answers = llm.generate(prompts, params, use_tqdm=use_tqdm)
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from error
    seconds = perf_counter() - begun
    outputs = [answer.outputs[0] for answer in answers]
    failures = [output.failure for output in outputs if output.failure is not None]
    if failures:
        raise CommandFailed(f"{len(failures)} of {len(outputs)} requests failed: {failures[0]}")
    num_output = sum(len(output.token_ids) for output in outputs)
    num_tokens = num_output + sum(len(prompt) for prompt in prompts)
    return Result(
        elapsed_time=seconds,
        num_requests=len(answers),
        total_num_tokens=num_tokens,
        total_output_tokens=num_output,
        requests_per_second=len(answers) / seconds,
        tokens_per_second=num_tokens / seconds,
        output_tokens_per_second=num_output / seconds,
    )


def _prompt(llm: LLM, request: Request) -> list[int]:
    prompt: Any = request.prompt
    if isinstance(prompt, str):
        return llm.tokenizer.encode(prompt)
    return llm.tokenizer.encode_chat(list(prompt)) if isinstance(prompt[0], dict) else list(prompt)


async def _requests(llm: LLM, options: Namespace) -> list[Request]:
    async def encode(text: str) -> list[int]:
        return llm.tokenizer.encode(text, add_special_tokens=False)

    async def tokens_of(text: str) -> int:
        return len(await encode(text))

    try:
        known: Words = await learn(encode)
    except TooFewWords:
        known = guessed()
    choice = datasets.Choice(
        name=options.dataset_name,
        path=options.dataset_path,
        seed=options.seed,
        random_input_len=options.input_len,
        random_output_len=options.output_len,
        random_range_ratio=options.random_range_ratio,
        random_prefix_len=options.prefix_len,
        sharegpt_output_len=options.sharegpt_output_len,
    )
    try:
        return await datasets.load(choice, options.num_prompts, known, as_text=False, tokens_of=tokens_of)
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from error


def _parser() -> Parser:
    parser = Parser("bench offline", "Throughput without a server.")
    parser.add_argument("--model", metavar="MODEL", help="folder or Hugging Face name [the starter model]")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="with --load-format dummy: of this model, without text")
    data = parser.add_argument_group("prompts")
    data.add_argument("--dataset-name", choices=("random", "sharegpt", "custom"), default="random", help="[random]")
    data.add_argument("--dataset-path", type=Path, metavar="FILE", help="of sharegpt and custom")
    data.add_argument("--num-prompts", type=int, default=100, metavar="N", help="[100]")
    data.add_argument("--input-len", type=int, default=256, metavar="N", help="tokens of a random prompt [256]")
    data.add_argument("--output-len", type=int, default=64, metavar="N", help="tokens of its answer [64]")
    data.add_argument("--prefix-len", type=int, default=0, metavar="N", help="tokens that all prompts share before [0]")
    data.add_argument("--random-range-ratio", type=float, default=0.0, metavar="R", help="lengths vary by this [0]")
    data.add_argument("--sharegpt-output-len", type=int, metavar="N", help="[as long as the answer in the file]")
    data.add_argument("--seed", type=int, default=0, help="of prompts, lengths and sampling [0]")
    data.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy [0]")
    engine = parser.add_argument_group("engine, as of `quire serve`")
    engine.add_argument("--load-format", choices=("auto", "dummy"), help="dummy: random weights, none are read")
    engine.add_argument("--device", choices=("cpu", "cuda"))
    engine.add_argument("--gpu-memory-utilization", type=float, metavar="SHARE")
    engine.add_argument("--enforce-eager", action=BooleanOptionalAction)
    engine.add_argument("--batch-invariant", action=BooleanOptionalAction)
    engine.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"))
    engine.add_argument("--quantization", choices=("int8", "int4", "int8-w8a8"))
    engine.add_argument("--kv-cache-dtype", choices=("auto", "float32", "bfloat16", "float16", "int8"))
    names = (
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "kv_cache_memory_bytes",
        "block_size",
        "threads",
    )
    for name in names:
        engine.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    engine.add_argument("--enable-prefix-caching", action=BooleanOptionalAction)
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    return parser
