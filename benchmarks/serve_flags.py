"""The flags of `quire bench serve`: the field's names and defaults."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire.benchmarks import backends, datasets
from quire.benchmarks.metrics import METRICS
from quire.clients.terminal import USAGE, CommandFailed, Parser, add_server_flags


def parse(words: Sequence[str]) -> Namespace:
    """All flags, checked. Raises CommandFailed with exit code 2."""
    options = _parser().parse(words)
    options.goodput = _goals(options.goodput)
    if options.num_prompts < 1:
        raise CommandFailed(f"--num-prompts must be at least 1, found {options.num_prompts}", USAGE)
    if options.burstiness <= 0 or any(rate <= 0 for rate in options.request_rate):
        raise CommandFailed("--burstiness and --request-rate must be positive", USAGE)
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise CommandFailed(f"--max-concurrency must be at least 1, found {options.max_concurrency}", USAGE)
    return options


def _parser() -> Parser:
    parser = Parser("bench serve", "A load test of a running server.")
    _server_flags(parser)
    _dataset_flags(parser)
    load = parser.add_argument_group("load")
    load.add_argument("--num-prompts", type=int, default=1000, metavar="N", help="requests in all [1000]")
    load.add_argument(
        "--request-rate", type=float, nargs="+", default=[float("inf")], metavar="RPS",
        help="requests a second; several: one run after the other [inf: all at once]",
    )  # fmt: skip
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="shape of the gaps: 1 Poisson, below burstier, above steadier [1]"
    )
    load.add_argument("--max-concurrency", type=int, metavar="N", help="requests in flight at most [no limit]")
    load.add_argument("--num-warmups", type=int, default=0, metavar="N", help="requests before the clock starts [0]")
    load.add_argument("--seed", type=int, default=0, help="of prompts, lengths, arrivals and sampling [0]")
    load.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy [0]")
    load.add_argument("--ignore-eos", action="store_true", help="answers of full length; not every server can")
    load.add_argument(
        "--extra-body", type=_object, default={}, metavar="JSON", help="further fields of every request's body"
    )
    _result_flags(parser)
    verify = parser.add_argument_group("verification")
    verify.add_argument(
        "--verify", action="store_true",
        help="send every request again alone and compare token by token; exit code 1 on any mismatch",
    )  # fmt: skip
    verify.add_argument(
        "--tie", type=float, default=0.0, metavar="M",
        help="a difference where the solo run's best two log probabilities are closer than this is a near tie, "
        "printed apart [0: none is]",
    )  # fmt: skip
    return parser


def _server_flags(parser: Parser) -> None:
    server = parser.add_argument_group("server")
    add_server_flags(server)
    server.add_argument("--backend", choices=backends.NAMES, default="openai", help="[openai]")
    server.add_argument("--endpoint", metavar="PATH", help="[the backend's own]")
    server.add_argument("--model", metavar="NAME", help="[the first that the server names]")
    server.add_argument("--tokenizer", metavar="PATH", help="model folder or tokenizer.json [the server's /tokenize]")
    server.add_argument("--header", type=_header, nargs="+", default=[], metavar="NAME=VALUE", help="sent along")


def _dataset_flags(parser: Parser) -> None:
    data = parser.add_argument_group("prompts")
    names = [*datasets.NAMES, "prefix_repetition"]
    data.add_argument(
        "--dataset-name", type=lambda name: "prefix-repetition" if name == "prefix_repetition" else name,
        choices=names, default="random", metavar="|".join(datasets.NAMES), help="[random]",
    )  # fmt: skip
    data.add_argument("--dataset-path", type=Path, metavar="FILE", help="of sharegpt (JSON) and custom (JSON lines)")
    lengths = {
        "random-input-len": 1024,
        "random-output-len": 128,
        "random-prefix-len": 0,
        "prefix-repetition-prefix-len": 256,
        "prefix-repetition-suffix-len": 256,
        "prefix-repetition-num-prefixes": 10,
        "prefix-repetition-output-len": 128,
        "custom-output-len": 256,
    }
    for name, default in lengths.items():
        data.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"[{default}]")
    data.add_argument("--random-range-ratio", type=float, default=0.0, metavar="R", help="lengths vary by this [0]")
    data.add_argument("--sharegpt-output-len", type=int, metavar="N", help="[as long as the answer in the file]")


def _result_flags(parser: Parser) -> None:
    result = parser.add_argument_group("results")
    result.add_argument(
        "--percentile-metrics", type=_metrics, default=["ttft", "tpot", "itl"], metavar="NAMES", help="[ttft,tpot,itl]"
    )
    result.add_argument("--metric-percentiles", type=_percentiles, default=[99.0], metavar="P,P", help="[99]")
    result.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS", help="count requests within these, as ttft:500 tpot:50"
    )
    result.add_argument("--save-result", action="store_true", help="write a JSON file")
    result.add_argument("--save-detailed", action="store_true", help="with every request's times and text in it")
    result.add_argument("--result-dir", type=Path, default=Path(), metavar="DIR", help="[the current folder]")
    result.add_argument("--result-filename", metavar="NAME", help="[backend, rate, model and time]")
    result.add_argument("--plot", action="store_true", help="write PNGs into the result folder")
    result.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def _header(word: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not separator:
        raise ArgumentTypeError(f"expected NAME=VALUE, found {word!r}")
    return name, value


def _object(word: str) -> dict[str, Any]:
    try:
        found = json.loads(word)
    except ValueError as error:
        raise ArgumentTypeError(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ArgumentTypeError(f"expected a JSON object, found {word!r}")
    return found


def _metrics(word: str) -> list[str]:
    names = [name.strip() for name in word.split(",")]
    if unknown := [name for name in names if name not in METRICS]:
        raise ArgumentTypeError(f"unknown metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    return names


def _percentiles(word: str) -> list[float]:
    try:
        found = [float(part) for part in word.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(f"expected numbers, found {word!r}") from error
    if any(not 0 <= percentile <= 100 for percentile in found):
        raise ArgumentTypeError(f"percentiles lie within 0 and 100, found {word!r}")
    return found


def _goals(words: Sequence[str]) -> dict[str, float]:
    goals = {}
    for word in words:
        name, _, limit = word.partition(":")
        if name not in ("ttft", "tpot", "e2el"):
            raise CommandFailed(f"--goodput {word}: expected ttft, tpot or e2el, a colon and milliseconds", USAGE)
        try:
            goals[name] = float(limit)
        except ValueError as error:
            raise CommandFailed(f"--goodput {word}: {limit!r} is no number of milliseconds", USAGE) from error
    return goals
