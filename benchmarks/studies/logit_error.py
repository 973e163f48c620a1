"""How far smaller weights and a smaller cache move the logits of models with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from quire.benchmarks.figure import figure
from quire.benchmarks.kernel_cases import make_plan
from quire.benchmarks.studies.quantization import VARIANTS
from quire.benchmarks.studies.settings import Settings
from quire.engine.config import EngineConfig
from quire.engine.loader import load_model
from quire.engine.model_folder import STARTER
from quire.engine.model_source import read_config
from quire.engine.precision import SCALE_BYTES, choose_precision
from quire.kernels import select

TOKENS, SEEDS, BLOCK_SIZE = 256, 3, 16


class Variant(msgspec.Struct, frozen=True):
    """One way to store the model."""

    weights: str
    cache: str
    error: float
    """Root mean square of the logits' differences from the first variant's, over the spread of those."""
    worst: float
    """The same of the seed with the largest."""
    same_first: float
    """Share of positions at which both have the same most likely token."""


class Result(msgspec.Struct, frozen=True):
    """All of them."""

    model: str
    tokens: int
    seeds: int
    variants: list[Variant]


def measure(settings: Settings) -> Result:
    """Every variant of every random checkpoint reads the same random tokens."""
    folder = Path(settings.model or STARTER)
    tokens, seeds = (16, 1) if settings.tiny else (TOKENS, SEEDS)
    found: list[list[tuple[float, float]]] = []
    names: list[tuple[str, str]] = []
    expected: list[Tensor] = []
    for options in VARIANTS[::3] if settings.tiny else VARIANTS:
        config = EngineConfig(model=str(folder), model_name=folder.name, **options)  # type: ignore[arg-type]
        rows = []
        for number in range(seeds):
            logits, name = _logits(folder, config, settings.seed + number, tokens)
            if len(expected) <= number:
                expected.append(logits)
            base = expected[number]
            error = (logits - base).square().mean().sqrt() / (
                base - base.mean(dim=1, keepdim=True)
            ).square().mean().sqrt()
            rows.append((error.item(), (logits.argmax(1) == base.argmax(1)).double().mean().item()))
        names.append(name)
        found.append(rows)
    variants = [
        Variant(
            weights,
            cache,
            math.sqrt(sum(error**2 for error, _ in rows) / seeds),
            max(error for error, _ in rows),
            sum(same for _, same in rows) / seeds,
        )
        for (weights, cache), rows in zip(names, found, strict=True)
    ]
    return Result(folder.name, tokens, seeds, variants)


@torch.inference_mode()
def _logits(folder: Path, engine: EngineConfig, seed: int, tokens: int) -> tuple[Tensor, tuple[str, str]]:
    """float32 [tokens, vocab] of a random checkpoint in the shape of the folder's model; what it was stored in."""
    config = read_config(folder, folder.name)
    precision = choose_precision(config, engine, "cpu")
    decoder = load_model(
        folder,
        config,
        select(engine.kernels, "cpu", precision.quantization),
        dtype=getattr(torch, precision.stored),
        load_format="dummy",
        seed=seed,
    )
    plan, blocks = make_plan([tokens], tokens, BLOCK_SIZE)
    dtype = getattr(torch, precision.cache)
    extra = SCALE_BYTES if dtype == torch.int8 else 0
    shapes = [(blocks, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim + extra) for spec in config.cache_specs()]
    caches = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for shape in shapes]
    ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
    hidden = decoder.forward(ids, torch.arange(tokens), [plan] * len(shapes), caches, lambda: None)
    return decoder.logits(hidden), (precision.name, precision.cache)


def draw(result: Result, path: Path) -> None:
    """A bar a variant."""
    shown = result.variants[1:]
    with figure(path, title="What smaller numbers do to the logits", size=(7.2, 4.0)) as (axes,):
        axes.barh([f"{one.weights}, cache {one.cache}" for one in shown], [100 * one.error for one in shown])
        axes.invert_yaxis()
        axes.set(xlabel="error of the logits, % of their spread")


def table(result: Result) -> str:
    """One row a variant."""
    rows = [
        f"Random weights in the shape of {result.model}, {result.seeds} seeds, {result.tokens} random tokens each.",
        "",
        "| weights | cache | error of the logits, % of their spread | worst seed | same first |",
        "|---|---|---:|---:|---:|",
    ]
    rows += [
        f"| {one.weights} | {one.cache} | {100 * one.error:.3f} | {100 * one.worst:.3f} | {one.same_first:.2%} |"
        for one in result.variants
    ]
    return "\n".join(rows)
