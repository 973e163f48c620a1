"""`quire bench compare`: the same load against several OpenAI-style servers, side by side in one run.

The servers take turns: in every round each of them gets the same requests, so that the noise of the machine meets all
of them; requests of one round are none of another's, so that no prefix cache is warm. Ratios are to the first server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from quire.benchmarks import datasets
from quire.benchmarks.backends import Request, Sampling, backend
from quire.benchmarks.load import Target, connect, run_load
from quire.benchmarks.metrics import Answer, Summary, summarize
from quire.benchmarks.server_facts import first_model, server_encode, server_version
from quire.benchmarks.servers import StartedServer
from quire.benchmarks.studies.record import PageError, record, update_page
from quire.benchmarks.words import Words, guessed, learn, local_encode
from quire.clients.terminal import USAGE, CommandFailed, Parser

_WARMUPS = 2


class Load(msgspec.Struct, frozen=True):
    """One server at one number of requests in flight; times in milliseconds, null where there are none."""

    server: str
    concurrency: int
    completed: int
    failed: int
    output_throughput: float
    """Tokens a second over all rounds."""
    throughputs: list[float]
    """Of each round."""
    mean_ttft_ms: float | None
    median_ttft_ms: float | None
    p99_ttft_ms: float | None
    mean_tpot_ms: float | None
    median_tpot_ms: float | None
    median_itl_ms: float | None
    p99_itl_ms: float | None


class Peer(msgspec.Struct, frozen=True):
    """Who was measured."""

    name: str
    url: str
    version: str | None
    """As the server or --version says."""
    command: str | None
    """That started it; None where it ran already."""
    ready_seconds: float | None


class Result(msgspec.Struct, frozen=True):
    """One comparison. `loads` go by concurrency, then in the order of `peers`."""

    input_tokens: int
    output_tokens: int
    num_prompts: int
    rounds: int
    peers: list[Peer]
    loads: list[Load]


class Contender:
    """One server of the comparison, connected."""

    def __init__(self, name: str, http: aiohttp.ClientSession, target: Target, process: StartedServer | None) -> None:
        self.name, self.http, self.target, self.process = name, http, target, process
        self.answers: dict[int, list[tuple[list[Answer], float]]] = {}
        """Concurrency -> what each round gave, and its seconds."""

    async def serve(self, requests: Sequence[Request], concurrency: int) -> tuple[list[Answer], float]:
        """A load with everybody else held still."""
        if self.process is not None:
            self.process.resume()
        try:
            return await run_load(self.http, self.target, requests, [0.0] * len(requests), max_concurrency=concurrency)
        finally:
            if self.process is not None:
                self.process.pause()


def main(words: list[str]) -> int:
    """Measure, print the table, write what was asked for. 1 where a server did not start or answered nothing."""
    options = _parse(words)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(options))
    print(table(result))
    found = record(shlex.join(["quire", "bench", "compare", *words]), result)
    if options.output_json is not None:
        found.save(options.output_json)
        print(f"wrote {options.output_json}")
    if options.plot is not None:
        from quire.benchmarks.compare_plot import draw

        draw(result, options.plot)
        print(f"wrote {options.plot}")
    if options.update_page is not None:
        try:
            update_page(options.update_page, "compare", section(result, found.date, found.machine, options))
        except (PageError, FileNotFoundError) as error:
            raise CommandFailed(str(error), USAGE) from error
        print(f"updated {options.update_page}")
    return int(len(result.peers) < len(options.server) or any(load.completed == 0 for load in result.loads))


async def measure(options: Namespace) -> Result:
    """Start what is to be started, one after the other; then take turns.

    A server of --start that does not come up is left out, unless it is the first.
    """
    starts, versions = dict(options.start), dict(options.version)
    async with contextlib.AsyncExitStack() as stack:
        contenders: list[Contender] = []
        peers: list[Peer] = []
        for name, address in options.server:
            process, seconds = None, None
            if name in starts:
                process = stack.enter_context(StartedServer(name, starts[name]))
                try:
                    seconds = await process.wait_ready(address, options.start_seconds)
                except CommandFailed as failure:
                    if not contenders:
                        raise
                    print(f"left out: {failure}", file=sys.stderr, flush=True)
                    process.stop()
                    continue
                print(f"{name} is ready after {seconds:.1f} s", flush=True)
            contender = await _connected(stack, name, address, process, options)
            version = versions.get(name) or await server_version(contender.http, _root(contender.target))
            peers.append(Peer(name, address, version, starts.get(name), seconds))
            contenders.append(contender)
            if process is not None:
                process.pause()
        rounds = await _take_turns(contenders, await _words(contenders, options), options)
        loads = [_load(contender, level) for level in options.max_concurrency for contender in contenders]
    return Result(options.input_len, options.output_len, options.num_prompts, rounds, peers, loads)


async def _connected(
    stack: contextlib.AsyncExitStack, name: str, address: str, process: StartedServer | None, options: Namespace
) -> Contender:
    http, url = connect(address)
    await stack.enter_async_context(http)
    kind = backend("openai")
    try:
        model = await first_model(http, url, {}, "openai")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise CommandFailed(f"{name}, {url}: {error or type(error).__name__}; is a server running there?") from error
    target = Target(url + kind.path, kind, Sampling(model, ignore_eos=True, extra=options.extra_body))
    return Contender(name, http, target, process)


async def _words(contenders: Sequence[Contender], options: Namespace) -> Words:
    """The words of every prompt: of --tokenizer, else of the first server; lengths are guesses without both."""
    if options.tokenizer is not None:
        return await learn(local_encode(options.tokenizer))
    first = contenders[0]
    if first.process is not None:
        first.process.resume()
    encode = await server_encode(first.http, _root(first.target), {}, first.target.sampling.model)
    return guessed() if encode is None else await learn(encode)


def _root(target: Target) -> str:
    return target.url.removesuffix(target.backend.path)


async def _take_turns(contenders: Sequence[Contender], words: Words, options: Namespace) -> int:
    """Returns how many rounds there were: no further one begins when --minutes are over."""
    choice = datasets.Choice(
        seed=options.seed, random_input_len=options.input_len, random_output_len=options.output_len
    )
    counts = {level: max(level, options.num_prompts) if level > 1 else options.num_prompts_alone
              for level in options.max_concurrency}  # fmt: skip
    total = _WARMUPS + options.rounds * sum(counts.values())
    requests = datasets.random_requests(choice, total, words, as_text=False)
    for contender in contenders:
        await contender.serve(requests[:_WARMUPS], _WARMUPS)
    at, begun = _WARMUPS, time.monotonic()
    for number in range(options.rounds):
        if number and time.monotonic() - begun > 60 * options.minutes:
            return number
        for level, count in counts.items():
            # Nobody is always the first after a change of load.
            turn = number % len(contenders)
            for contender in [*contenders[turn:], *contenders[:turn]]:
                answers, seconds = await contender.serve(requests[at : at + count], level)
                contender.answers.setdefault(level, []).append((answers, seconds))
                rate = sum(answer.output_tokens for answer in answers) / seconds
                print(f"round {number + 1}, {level} at once, {contender.name}: {rate:.1f} tokens/s", flush=True)
            at += count
    return int(options.rounds)


def _load(contender: Contender, level: int) -> Load:
    rounds = contender.answers[level]
    whole: Summary = summarize([answer for answers, _ in rounds for answer in answers], sum(time for _, time in rounds))
    found = whole.as_json()
    return Load(
        server=contender.name,
        concurrency=level,
        completed=whole.completed,
        failed=whole.failed,
        output_throughput=found["output_throughput"],
        throughputs=[summarize(answers, seconds).as_json()["output_throughput"] for answers, seconds in rounds],
        **{f"{kind}_{name}_ms": found[f"{kind}_{name}_ms"] for kind, name in (
            ("mean", "ttft"), ("median", "ttft"), ("p99", "ttft"), ("mean", "tpot"), ("median", "tpot"),
            ("median", "itl"), ("p99", "itl"))},
    )  # fmt: skip


def table(result: Result) -> str:
    """One row a server and load; the last columns say how many times better the first server is."""
    first = result.peers[0].name
    rows = [
        f"| at once | server | output tokens/s | rounds | TTFT mean, ms | TPOT median, ms | ITL p99, ms "
        f"| {first}: tokens/s | {first}: TPOT |",
        "|---:|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    ours = {load.concurrency: load for load in result.loads if load.server == first}
    for load in result.loads:
        own = ours[load.concurrency]
        spread = f"{min(load.throughputs):.1f} .. {max(load.throughputs):.1f}"
        failed = f" ({load.failed} failed)" if load.failed else ""
        rows.append(
            f"| {load.concurrency} | {load.server}{failed} | {load.output_throughput:.1f} | {spread} "
            f"| {shown(load.mean_ttft_ms)} | {shown(load.median_tpot_ms)} | {shown(load.p99_itl_ms)} "
            f"| {times(own.output_throughput, load.output_throughput)} "
            f"| {times(load.median_tpot_ms, own.median_tpot_ms)} |"
        )
    return "\n".join(rows)


def shown(value: float | None) -> str:
    """Milliseconds, or n/a."""
    return "n/a" if value is None else f"{value:.1f}"


def times(value: float | None, by: float | None) -> str:
    """How many times `by` the value is."""
    return f"{value / by:.2f} x" if value and by else "n/a"


def section(result: Result, day: str, machine: dict[str, Any], options: Namespace) -> str:
    """What stands on the page."""
    lines = [table(result), ""]
    if options.plot is not None:
        image = os.path.relpath(options.plot, options.update_page.parent)
        lines += [f"![The same load against {', '.join(peer.name for peer in result.peers)}, in turns.]({image})", ""]
    versions = ", ".join(f"{peer.name} {peer.version or ''}".strip() for peer in result.peers)
    file = f"; `{options.output_json.name}` has the commands" if options.output_json is not None else ""
    lines.append(
        f"`quire bench compare`, {result.input_tokens} tokens in, {result.output_tokens} out, {result.rounds} rounds, "
        f"on {day}, {machine['cores']} cores of {machine['processor']}: {versions}{file}."
    )
    return "\n".join(lines)


def _parse(words: list[str]) -> Namespace:
    options = _parser().parse(words)
    if len(options.server) < 1:
        raise CommandFailed("give at least one --server NAME=URL", USAGE)
    names = [name for name, _ in options.server]
    for flag in ("start", "version"):
        for name, _ in getattr(options, flag):
            if name not in names:
                raise CommandFailed(f"--{flag} {name}=...: no --server has that name", USAGE)
    if len(set(names)) < len(names):
        raise CommandFailed("two --server have the same name", USAGE)
    if min(options.num_prompts, options.rounds, options.num_prompts_alone, *options.max_concurrency) < 1:
        raise CommandFailed("--num-prompts, --rounds and --max-concurrency must be at least 1", USAGE)
    return options


def _parser() -> Parser:
    parser = Parser("bench compare", "One load, several servers, in turns.")
    servers = parser.add_argument_group("servers")
    servers.add_argument(
        "--server", type=_named, action="append", default=[], metavar="NAME=URL",
        help="an OpenAI-style server; once for each, ratios are to the first",
    )  # fmt: skip
    servers.add_argument(
        "--start", type=_named, action="append", default=[], metavar="NAME=COMMAND",
        help="start that server, stop it at the end, and hold it still (SIGSTOP) while others are measured",
    )  # fmt: skip
    servers.add_argument(
        "--version", type=_named, action="append", default=[], metavar="NAME=TEXT", help="for those that tell none"
    )
    servers.add_argument(
        "--start-seconds", type=float, default=600.0, metavar="S", help="for a server of --start to be ready [600]"
    )
    servers.add_argument("--tokenizer", type=Path, metavar="PATH", help="folder or tokenizer.json [the first server's]")
    load = parser.add_argument_group("load")
    load.add_argument("--num-prompts", type=int, default=16, metavar="N", help="requests a server and round [16]")
    load.add_argument("--num-prompts-alone", type=int, default=3, metavar="N", help="the same where one runs [3]")
    load.add_argument("--max-concurrency", type=int, nargs="+", default=[1, 8], metavar="N", help="at once [1 8]")
    load.add_argument("--input-len", type=int, default=256, metavar="N", help="tokens of a prompt [256]")
    load.add_argument("--output-len", type=int, default=64, metavar="N", help="tokens of an answer [64]")
    load.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each server [3]")
    load.add_argument("--minutes", type=float, default=60.0, help="begin no further round after so many [60]")
    load.add_argument("--seed", type=int, default=0, help="of the prompts [0]")
    load.add_argument("--extra-body", type=msgspec.json.decode, default={}, metavar="JSON", help="further fields")
    result = parser.add_argument_group("results")
    result.add_argument("--output-json", type=Path, metavar="FILE", help="with versions, commands and machine")
    result.add_argument("--plot", type=Path, metavar="FILE", help="a PNG")
    result.add_argument("--update-page", type=Path, metavar="FILE", help="put table and figure on this page")
    return parser


def _named(word: str) -> tuple[str, str]:
    found = re.fullmatch(r"([^=]+)=(.+)", word, re.DOTALL)
    if found is None:
        raise ArgumentTypeError(f"expected NAME=..., found {word!r}")
    return found[1], found[2]
