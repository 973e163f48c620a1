"""`quire plan`: what a model takes of memory and how fast it will be, from config.json alone, before it is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quire.clients.terminal import USAGE, CommandFailed, Parser, colours, nearest

if TYPE_CHECKING:
    from quire.engine.devices import Device
    from quire.engine.forecast import Forecast
    from quire.engine.models.config import ModelConfig
    from quire.server.settings import ServerSettings

_THIS = ("this", "cpu", "auto")
_OWN_FLAGS = ("--device", "--memory", "--context", "--prompt-len", "--json")


def main(command: str, arguments: list[str]) -> int:
    """Print the plan; the exit code is 5, with the sentence of `quire serve`, when the model does not fit."""
    options, rest = _parser(command).parse_known_args(arguments)
    found = make_plan(options, rest)
    if options.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        from quire.clients.plan_report import report

        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(report(found, colours(sys.stdout), unicode))
    if found.refusal is not None:
        from quire.engine.errors import CapacityError

        sys.stdout.flush()
        raise CapacityError(found.refusal)
    return 0


def make_plan(options: argparse.Namespace, rest: list[str]) -> Forecast:
    """The forecast for the flags of `quire plan` and, in `rest`, the model and the flags of `quire serve`."""
    from quire.engine.forecast import forecast
    from quire.engine.hardware import Hardware, count_cores
    from quire.engine.plan import footprint_of
    from quire.server.layers import load_settings

    _refuse_misspelt(rest)
    settings = load_settings(rest, os.environ)
    model, folder = _read_model(settings)
    config = settings.to_engine_config(folder, None)
    footprint = footprint_of(config, model, Hardware(count_cores()), "cpu" if options.device in _THIS else "gpu")
    context = _size("--context", options.context)
    if context is not None and context > footprint.resolved.max_model_len:
        limit = footprint.resolved.max_model_len
        raise CommandFailed(f"--context {context}: at most --max-model-len, which is {limit}", USAGE)
    return forecast(
        model,
        footprint,
        _device(options, footprint.resolved.threads, config.gpu_memory_utilization),
        context=context,
        prompt_len=_size("--prompt-len", options.prompt_len),
        max_num_batched_tokens=footprint.resolved.max_num_batched_tokens,
    )


def _parser(command: str) -> Parser:
    from quire.engine.devices import GPUS

    parser = Parser(
        command,
        f"{__doc__} MODEL: a folder, a GGUF file, a config.json, a hub name in the cache, or starter.",
        usage=f"quire {command} [MODEL] [flags] [flags of quire serve]",
        epilog="The flags of `quire serve` count too: --dtype, --kv-cache-memory-bytes, --block-size, --max-num-seqs, "
        "--max-num-batched-tokens, --max-model-len. Exit codes: 0, 2 usage, 3 model, 5 it does not fit.",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="this",
        help=f"what to plan for: this (the CPU here), {', '.join(GPUS)} [this]",
    )
    parser.add_argument("--memory", metavar="SIZE", help="memory to plan with instead of the device's, such as 64GiB")
    parser.add_argument("--context", metavar="TOKENS", help="tokens of each sequence [--max-model-len, and shorter]")
    parser.add_argument("--prompt-len", metavar="TOKENS", help="prompt whose first token is predicted [512]")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _refuse_misspelt(words: list[str]) -> None:
    """A flag that is nearly one of ours, and none of `quire serve`."""
    from quire.server.layers import FIELDS, flag_name

    served = {flag_name(name) for name in FIELDS}
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        if flag.replace("_", "-") not in served and (hint := nearest(flag, _OWN_FLAGS)):
            raise CommandFailed(f"unknown flag {flag}{hint}", USAGE)


def _read_model(settings: ServerSettings) -> tuple[ModelConfig, Path]:
    """The model's config and its folder, or its GGUF file. Raises ModelError as `quire serve` would."""
    from quire.engine.gguf_file import is_gguf
    from quire.engine.model_folder import STARTER, find_cached, find_local
    from quire.engine.model_source import read_config
    from quire.engine.models.architectures import read_model_config

    name = settings.model or "starter"
    path = Path(os.path.expanduser(name))
    if path.is_file() and not is_gguf(path):
        return read_model_config(path.parent, name, path.name), path.parent
    if path.exists():
        path = find_local(path, name)
    elif name == "starter":
        path = STARTER
    else:
        path = find_cached(name, revision=settings.revision, download_dir=settings.download_dir)
    return read_config(path, name), path


def _device(options: argparse.Namespace, cores: int, share: float | None) -> Device:
    from dataclasses import replace

    from quire.engine.devices import GPUS, this_machine
    from quire.engine.hardware import available_memory

    memory = _size("--memory", options.memory)
    if options.device in _THIS:
        return this_machine(memory or available_memory(), cores)
    if options.device not in GPUS:
        known = ["this", *GPUS]
        hint = nearest(options.device, known) or f"; known are {', '.join(known)}"
        raise CommandFailed(f"--device {options.device}: unknown{hint}", USAGE)
    gpu = GPUS[options.device]
    return replace(gpu, memory_bytes=memory or gpu.memory_bytes, share=gpu.share if share is None else share)


def _size(flag: str, text: str | None) -> int | None:
    """A whole number with a unit, at least 1. Raises CommandFailed."""
    from quire.server.parsing import parse_size

    if text is None:
        return None
    try:
        value = parse_size(text)
    except ValueError:
        value = 0
    if value < 1:
        raise CommandFailed(f"{flag} {text}: expected a whole number of at least 1, such as 4096, 4K or 8GiB", USAGE)
    return value
