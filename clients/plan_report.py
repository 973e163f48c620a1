"""The page that `quire plan` prints: a bar of memory, the cache, how many run at once and how fast, and advice."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.engine.forecast import Forecast

_BAR_CELLS = 60
_NAME_WIDTH = 18
_WIDTH = 104
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True)
class _Part:
    """A piece of memory: what it is drawn with (Unicode, ASCII, colour), and what stands behind its size."""

    name: str
    size: int
    cell: str
    plain: str
    colour: str
    remark: str = ""


class _Paint:
    """Escape codes, or nothing."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour and text else text


def report(plan: Forecast, colour: bool, unicode: bool) -> str:
    """The whole page, without a newline at its end."""
    paint = _Paint(colour)
    device, model = plan.device, plan.model
    lines = [
        f"{paint('1', model.name)}  {model.architecture}, {model.num_layers} layers, "
        f"{_count(model.parameters)} parameters, context {model.max_position_embeddings:,}",
        f"on {device.title}: {_rate(device.bandwidth_bytes, 'B/s')}, "
        f"{_rate(device.flops, 'FLOP/s')} in {device.flops_dtype}",
        "",
        *_memory(plan, paint, unicode),
        "",
        *_cache(plan, paint),
        "",
        *_speed(plan, paint),
    ]
    if plan.advice is not None:
        first, *more = textwrap.wrap(plan.advice, _WIDTH - _NAME_WIDTH, break_on_hyphens=False)
        lines += ["", paint("1", "Advice".ljust(_NAME_WIDTH)) + first, *(" " * _NAME_WIDTH + line for line in more)]
    return "\n".join(lines)


def _memory(plan: Forecast, paint: _Paint, unicode: bool) -> list[str]:
    memory = plan.memory
    kept = "two processes" if plan.device.name == "cpu" else "context, graphs, activations"
    parts = [
        _Part("weights", memory.weights, "█", "#", "34", plan.model.dtype_reason),
        _Part("rope tables", memory.rope_tables, "█", "#", "36"),
        _Part("KV cache", memory.kv_cache, "▓", "=", "32", _share(memory.kv_cache, memory.total)),
        _Part("reserved", memory.reserved, "▒", "-", "33", kept),
        _Part("free", max(0, memory.free), "░", ".", "2", _share(max(0, memory.free), memory.total)),
        _Part("missing", max(0, -memory.free), "×", "!", "31"),
    ]
    lines = [paint("1", "Memory".ljust(_NAME_WIDTH)) + size(memory.total), "  " + _bar(parts, paint, unicode)]
    for part in parts:
        if part.size == 0 and part.name != "KV cache":
            continue
        cell = paint(part.colour, part.cell if unicode else part.plain)
        lines.append(f"  {cell} {part.name:<{_NAME_WIDTH - 4}}{size(part.size)}  {paint('2', part.remark)}".rstrip())
        if part.name == "weights":
            for name in ("embeddings", "attention", "feed_forward", "norms"):
                value = getattr(plan.weights, name)
                label = f"    {name.replace('_', '-')}".ljust(_NAME_WIDTH)
                lines.append(f"{label}{size(value)}  {paint('2', _share(value, memory.weights))}")
    return lines


def _bar(parts: Sequence[_Part], paint: _Paint, unicode: bool) -> str:
    """Cells in proportion; at least one for everything that is there, taken from the largest."""
    shown = [part for part in parts if part.size > 0]
    total = sum(part.size for part in shown)
    cells = [max(1, round(_BAR_CELLS * part.size / total)) for part in shown]
    largest = max(range(len(shown)), key=lambda index: cells[index])
    cells[largest] += _BAR_CELLS - sum(cells)
    return "".join(
        paint(part.colour, (part.cell if unicode else part.plain) * count)
        for part, count in zip(shown, cells, strict=True)
    )


def _cache(plan: Forecast, paint: _Paint) -> list[str]:
    cache = plan.kv_cache
    title = paint("1", "KV cache".ljust(_NAME_WIDTH))
    block = f"{size(cache.bytes_per_block).strip()} a block of {cache.block_size}"
    lines = [f"{title}{size(int(cache.bytes_per_token))} a token, {block}"]
    if plan.fits:
        lines.append(f"{'  blocks':<{_NAME_WIDTH}}{cache.num_blocks:>10,}")
        lines.append(f"{'  tokens':<{_NAME_WIDTH}}{cache.num_tokens:>10,}")
        lines.append(f"{'  longest':<{_NAME_WIDTH}}{cache.max_model_len:>10,} tokens a sequence")
    return lines


def _speed(plan: Forecast, paint: _Paint) -> list[str]:
    prompt = plan.prompt
    lines = [paint("1", "Prediction".ljust(_NAME_WIDTH)) + paint("2", "not a measurement")]
    if plan.loads:
        heads = ("context", "cache holds", "run at once", "ITL alone", "ITL", "tokens/s")
        lines.append("  " + paint("2", "  ".join(head.rjust(11) for head in heads)))
    for load in plan.loads:
        cells = (
            f"{load.context:,}",
            f"{load.concurrency:,.1f}",
            f"{load.batch:,}",
            _milliseconds(load.itl_alone_ms),
            _milliseconds(load.itl_ms),
            f"{load.tokens_per_second:,.0f}",
        )
        lines.append("  " + "  ".join(cell.rjust(11) for cell in cells))
    lines.append(
        f"  first token of a prompt of {prompt.prompt_len:,}: {_milliseconds(prompt.ttft_ms)} "
        f"in steps of up to {prompt.max_num_batched_tokens:,} tokens"
    )
    remarks = (f"assumes {plan.assumptions}", f"peaks: {plan.device.source}")
    return lines + [f"  {paint('2', line)}" for text in remarks for line in textwrap.wrap(text, _WIDTH - 2)]


def size(num_bytes: int) -> str:
    """Ten columns: a number and its unit."""
    for factor, unit in _UNITS:
        if num_bytes >= factor:
            return f"{num_bytes / factor:>6.2f} {unit}"
    return f"{num_bytes:>6} B  "


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def _count(number: int) -> str:
    for factor, unit in ((10**9, "B"), (10**6, "M")):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:,}"


def _rate(number: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number / 1e6:.3g} M{unit}"


def _milliseconds(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"
