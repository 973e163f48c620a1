"""From settings to what the answers need of a model: folder, tokenizer, defaults; and what is printed meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from quire.engine.hardware import available_memory, count_cores, find_hardware
from quire.engine.messages import Progress, Ready
from quire.engine.model_folder import STARTER, GenerationDefaults, resolve_model
from quire.engine.model_source import read_config, read_defaults
from quire.engine.models.config import ModelConfig
from quire.engine.plan import PROCESS_BYTES, fit, footprint_of
from quire.engine.tokenizer import Tokenizer
from quire.server.settings import ServerSettings

_GIB = 1 << 30
_STAGES = {"weights": "Loading weights", "warmup": "Warming up"}

logger = logging.getLogger("quire.server")


@dataclass(frozen=True)
class LoadedModel:
    """What the HTTP process keeps of a model."""

    folder: Path
    tokenizer: Tokenizer
    defaults: GenerationDefaults


def find_model(settings: ServerSettings, progress: LoadProgress) -> LoadedModel:
    """Find or download the model and read its tokenizer. Blocks; raises ModelError.

    What does not fit into memory is refused here already (CapacityError), before its weights are downloaded and an
    engine is started for it; settings that do not go with the model too (UsageError).
    """

    def inspect(folder: Path) -> ModelConfig:
        config = read_config(folder, name)
        wanted = settings.to_engine_config(folder, None)
        hardware = find_hardware(count_cores(), wanted.device)
        footprint = footprint_of(wanted, config, hardware)
        if hardware.gpu is not None:
            fit(footprint, hardware.gpu.limit(wanted.gpu_memory_utilization))
        else:
            fit(footprint, max(0, available_memory() - PROCESS_BYTES))
        return config

    name = settings.model or "starter"
    folder = STARTER if settings.model is None else _resolve(settings, name, progress, inspect)
    logger.info("Model %s", name)
    config = inspect(folder)
    defaults = read_defaults(folder, name)
    tokenizer = Tokenizer.from_folder(
        folder if settings.tokenizer is None else _resolve(settings, settings.tokenizer, progress),
        model_name=name,
        model_vocab_size=config.vocab_size,
        eos_token_ids=defaults.eos_token_ids or config.eos_token_ids,
        chat_template=None if settings.chat_template is None else Path(settings.chat_template),
        check_template=False,
    )
    return LoadedModel(folder, tokenizer, defaults)


def _resolve(
    settings: ServerSettings,
    name_or_path: str,
    progress: LoadProgress,
    inspect: Callable[[Path], object] = lambda folder: None,
) -> Path:
    return resolve_model(
        name_or_path,
        revision=settings.revision,
        download_dir=settings.download_dir,
        progress=progress.download,
        inspect=inspect,
    )


class LoadProgress:
    """A line on a terminal that says how far loading is; nothing where output is no terminal. `stage` is its text."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.stage = ""
        self._shown = out.isatty()
        self._open = False

    def download(self, name: str, done: int, total: int) -> None:
        """Bytes of one file."""
        self._show(f"Downloading {name}: {_share(done, total)}")

    def load(self, progress: Progress) -> None:
        """What the engine says."""
        self._show(f"{_STAGES.get(progress.stage, progress.stage)}: {_share(progress.done, progress.total)}")

    def close(self) -> None:
        """End the line."""
        if self._open:
            self._out.write("\n")
            self._open = False

    def _show(self, text: str) -> None:
        self.stage = text
        if self._shown:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()
            self._open = True


def start_lines(facts: Ready, seconds: float) -> Iterator[str]:
    """What people want to know once the model is loaded, in vLLM's words where it has them."""
    load = facts.seconds.get("weights", 0.0)
    yield f"Model weights: {_size(facts.weights_bytes)}, loaded in {load:.2f} s ({facts.dtype}, {facts.device})"
    blocks = f"{facts.num_blocks} blocks of {facts.block_size} tokens"
    yield f"KV cache memory: {_size(facts.kv_cache_bytes)}, {blocks}"
    tokens = facts.num_blocks // facts.num_cache_groups * facts.block_size
    yield f"KV cache size: {tokens:,} tokens"
    yield (f"Maximum concurrency for {facts.max_model_len:,} tokens per request: {tokens / facts.max_model_len:.2f}x")
    yield f"Kernels: {facts.kernels}"
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in facts.seconds.items())
    yield f"Engine ready after {seconds:.2f} s ({parts})"
    yield from facts.notes


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / (1 << 20):.1f} MiB"


def _share(done: int, total: int) -> str:
    return f"{100 * done // max(1, total)}%"
