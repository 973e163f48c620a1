"""`quire bench serve`: a load test of any OpenAI-style server, and with --verify a test of its answers.

The flags, the block and the JSON keys are the field's. Requests are sent with temperature 0 unless told otherwise.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from tqdm import tqdm

from quire.benchmarks import datasets
from quire.benchmarks.arrivals import arrival_times
from quire.benchmarks.backends import Request, Sampling, backend
from quire.benchmarks.load import Target, connect, run_load
from quire.benchmarks.metrics import Answer, Summary, summarize
from quire.benchmarks.report import block, reasons
from quire.benchmarks.serve_flags import parse
from quire.benchmarks.server_facts import first_model, server_encode
from quire.benchmarks.verify import Means, Verdict, describe, find_means, verify
from quire.benchmarks.words import Encode, TooFewWords, Words, guessed, learn, local_encode
from quire.clients import protocol
from quire.clients.terminal import USAGE, CommandFailed


@dataclass(frozen=True)
class Run:
    """One load at one rate: requests a second, infinite where all come at once."""

    rate: float
    summary: Summary
    answers: list[Answer]
    verdict: Verdict | None


def main(words: list[str]) -> int:
    """Run the load test. 0: done; 1: nothing succeeded, or --verify found a difference or could not compare."""
    options = parse(words)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main(options))


async def _main(options: Namespace) -> int:
    http, url = connect(protocol.base_url(options.base_url, os.environ))
    headers = protocol.authorization(options.api_key, os.environ) | dict(options.header)
    async with http:
        target = await _target(http, url, headers, options)
        warmups, requests = await _requests(http, url, target, options)
        means = await _means(http, target, requests[0]) if options.verify else None
        if warmups:
            await run_load(http, target, warmups, [0.0] * len(warmups), max_concurrency=options.max_concurrency)
        runs = []
        for number, rate in enumerate(options.request_rate):
            part = requests[number * options.num_prompts : (number + 1) * options.num_prompts]
            runs.append(await _run(http, target, part, rate, means, options))
    for run in runs:
        if options.save_result:
            _save(run, target, options, several=len(runs) > 1)
    if options.plot:
        from quire.benchmarks.plot import plot_runs

        for path in plot_runs(runs, options.result_dir):
            print(f"wrote {path}")
    failed = any(run.summary.completed == 0 for run in runs)
    return int(failed or any(run.verdict is not None and not run.verdict.clean for run in runs))


async def _target(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], options: Namespace) -> Target:
    kind = backend(options.backend, options.endpoint)
    try:
        model = options.model or await first_model(http, url, headers, options.backend)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise CommandFailed(f"{url}: {error or type(error).__name__}; is a server running there?") from error
    sampling = Sampling(model, options.temperature, options.seed, options.ignore_eos, options.extra_body)
    return Target(url + (options.endpoint or kind.path), kind, sampling, headers)


async def _requests(
    http: aiohttp.ClientSession, url: str, target: Target, options: Namespace
) -> tuple[list[Request], list[Request]]:
    """Warm-ups, and the load of all rates: no prompt twice, or the next rate would find a warm prefix cache."""
    encode = await _encode(http, url, target, options)
    words = await _words(encode)
    fields = datasets.Choice.__dataclass_fields__
    choice = datasets.Choice(options.dataset_name, options.dataset_path, **{
        name: getattr(options, name) for name in fields if name not in ("name", "path")
    })  # fmt: skip
    if words.ids is None:
        print("warning: no tokenizer to ask; lengths of prompts are guesses. Give --tokenizer FOLDER.", file=sys.stderr)

    async def tokens_of(text: str) -> int:
        return len(await encode(text)) if encode is not None else max(1, len(text) // 4)

    count = options.num_prompts * len(options.request_rate) + options.num_warmups
    as_text = not target.backend.takes_token_ids
    try:
        requests = await datasets.load(choice, count, words, as_text=as_text, tokens_of=tokens_of)
        for request in requests:
            target.backend.body(request, 0, target.sampling)
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from error
    return requests[: options.num_warmups], requests[options.num_warmups :]


async def _encode(http: aiohttp.ClientSession, url: str, target: Target, options: Namespace) -> Encode | None:
    """The tokenizer that was named, else the server's own; None when it has no /tokenize."""
    if options.tokenizer is not None:
        try:
            return local_encode(Path(options.tokenizer))
        except FileNotFoundError as error:
            raise CommandFailed(f"--tokenizer: {error}", USAGE) from error
    return await server_encode(http, url, target.headers, target.sampling.model)


async def _words(encode: Encode | None) -> Words:
    try:
        return await learn(encode) if encode is not None else guessed()
    except TooFewWords:
        return guessed()


async def _means(http: aiohttp.ClientSession, target: Target, request: Request) -> Means:
    try:
        return await find_means(http, target, request)
    except ConnectionError as error:
        raise CommandFailed(f"{target.url}: the first request failed: {error}") from error


async def _run(
    http: aiohttp.ClientSession,
    target: Target,
    requests: Sequence[Request],
    rate: float,
    means: Means | None,
    options: Namespace,
) -> Run:
    times = arrival_times(len(requests), rate, options.burstiness, options.seed)
    with _bar(len(requests), "load", options) as bar:
        answers, duration = await run_load(
            http,
            target,
            requests,
            times,
            max_concurrency=options.max_concurrency,
            extra=means.fields if means is not None else None,
            on_answer=lambda answer: bar.update(),
        )
    summary = summarize(answers, duration, percentiles=options.metric_percentiles, goals=options.goodput)
    shown = block(
        summary,
        shown=options.percentile_metrics,
        percentiles=options.metric_percentiles,
        max_concurrency=options.max_concurrency,
        rate=rate,
    )
    print(shown)
    if summary.reasons:
        print(reasons(summary))
    verdict = None
    if means is not None:
        with _bar(len(requests), "alone", options) as bar:
            verdict = await verify(http, target, requests, answers, means, tie=options.tie, on_answer=bar.update)
        print(describe(verdict))
    return Run(rate, summary, answers, verdict)


def _bar(total: int, name: str, options: Namespace) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit="request", disable=options.disable_tqdm or not sys.stderr.isatty())


def _save(run: Run, target: Target, options: Namespace, *, several: bool) -> None:
    """Write the JSON; with several rates the rate becomes part of each name."""
    now = datetime.now()
    rate = "inf" if math.isinf(run.rate) else f"{run.rate:g}"
    model = target.sampling.model.replace("/", "-")
    name = options.result_filename or f"{options.backend}-{rate}qps-{model}-{now:%Y%m%d-%H%M%S}.json"
    if options.result_filename and several:
        name = f"{Path(name).stem}-{rate}qps{Path(name).suffix}"
    facts: dict[str, Any] = {
        "date": f"{now:%Y%m%d-%H%M%S}",
        "backend": options.backend,
        "endpoint": target.url,
        "model_id": target.sampling.model,
        "tokenizer_id": options.tokenizer or target.sampling.model,
        "dataset_name": options.dataset_name,
        "num_prompts": len(run.answers),
        "seed": options.seed,
        "temperature": options.temperature,
        "request_rate": rate if math.isinf(run.rate) else run.rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        **run.summary.as_json(),
    }
    if run.verdict is not None:
        facts["verify"] = run.verdict.as_json()
    if options.save_detailed:
        facts |= {
            "input_lens": [answer.input_tokens for answer in run.answers],
            "output_lens": [answer.output_tokens for answer in run.answers],
            "start_times": [answer.sent for answer in run.answers],
            "ttfts": [answer.ttft for answer in run.answers],
            "itls": [answer.itl for answer in run.answers],
            "generated_texts": [answer.text for answer in run.answers],
            "errors": [answer.error or "" for answer in run.answers],
        }
    options.result_dir.mkdir(parents=True, exist_ok=True)
    path = options.result_dir / name
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"wrote {path}")
