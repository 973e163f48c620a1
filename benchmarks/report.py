"""The console block that everybody in this field reads, 50 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from quire.benchmarks.metrics import METRICS, Summary, percentile_key

WIDTH = 50


def block(
    summary: Summary,
    *,
    shown: Sequence[str] = ("ttft", "tpot", "itl"),
    percentiles: Sequence[float] = (99.0,),
    max_concurrency: int | None = None,
    rate: float = float("inf"),
) -> str:
    """The `Serving Benchmark Result` block: counts, throughputs, then the latencies `shown`, in milliseconds."""
    facts = summary.as_json()
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    lines.append(_line("Successful requests:", summary.completed))
    lines.append(_line("Failed requests:", summary.failed))
    if max_concurrency is not None:
        lines.append(_line("Maximum request concurrency:", max_concurrency))
    if rate != float("inf"):
        lines.append(_line("Request rate configured (RPS):", rate))
    lines.append(_line("Benchmark duration (s):", summary.duration))
    lines.append(_line("Total input tokens:", summary.input_tokens))
    lines.append(_line("Total generated tokens:", summary.output_tokens))
    lines.append(_line("Request throughput (req/s):", facts["request_throughput"]))
    if summary.good is not None:
        lines.append(_line("Request goodput (req/s):", facts["request_goodput"]))
    lines.append(_line("Output token throughput (tok/s):", facts["output_throughput"]))
    lines.append(_line("Total Token throughput (tok/s):", facts["total_token_throughput"]))
    for name in shown:
        lines.append(f"{METRICS[name]:-^{WIDTH}}")
        label = name.upper()
        lines.append(_line(f"Mean {label} (ms):", facts[f"mean_{name}_ms"]))
        lines.append(_line(f"Median {label} (ms):", facts[f"median_{name}_ms"]))
        lines += [
            _line(
                f"{percentile_key(percentile).upper()} {label} (ms):", facts[f"{percentile_key(percentile)}_{name}_ms"]
            )
            for percentile in percentiles
        ]
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def reasons(summary: Summary) -> str:
    """The failed requests by their reason, one a line; empty when all went well."""
    return "\n".join(f"  {count} failed: {reason}" for reason, count in summary.reasons.items())


def _line(label: str, value: float | None) -> str:
    """Forty columns of label, a space, nine of value."""
    shown = "n/a" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
    return f"{label:<40} {shown:<9}"
