"""From the timelines of answers to the field's figures.

    TTFT   from sending to the first token with text
    E2EL   from sending to the last token
    TPOT   (E2EL - TTFT) / (output tokens - 1), of answers with at least two tokens
    ITL    each gap between two chunks that bring tokens

A failed request counts as failed and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

METRICS = {"ttft": "Time to First Token", "tpot": "Time per Output Token (excl. 1st token)"} | {
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


@dataclass
class Answer:
    """One request as the client saw it; moments are seconds of one monotonic clock."""

    index: int
    sent: float
    moments: list[float] = field(default_factory=list)
    """Of each chunk with tokens, from the first with text on."""
    ended: float = 0.0
    """The last token, or the word that there is none."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Texts of tokens, where log probabilities were asked for."""
    margins: list[float] = field(default_factory=list)
    """Log probability of the best token less that of the second, one a token; empty unless asked for."""
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    """Why it failed; None for a whole answer."""

    @property
    def ttft(self) -> float | None:
        """Seconds; None when no token had text."""
        return self.moments[0] - self.sent if self.moments else None

    @property
    def e2el(self) -> float:
        """Seconds."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; None for answers of fewer than two."""
        if self.ttft is None or self.output_tokens < 2:
            return None
        return (self.e2el - self.ttft) / (self.output_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Seconds of each gap."""
        return [later - earlier for earlier, later in zip(self.moments, self.moments[1:], strict=False)]


@dataclass(frozen=True)
class Summary:
    """One run. `values` holds the milliseconds behind each of METRICS."""

    duration: float
    completed: int
    failed: int
    reasons: dict[str, int]
    input_tokens: int
    output_tokens: int
    good: int | None
    """Requests within all goals; None without goals."""
    peak: int
    """Most requests in flight at once."""
    values: dict[str, list[float]]
    percentiles: tuple[float, ...] = (99.0,)

    def as_json(self) -> dict[str, Any]:
        """The field's keys; what cannot be computed is null."""
        facts: dict[str, Any] = {
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "failure_reasons": self.reasons,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.completed / self.duration,
            "request_goodput": None if self.good is None else self.good / self.duration,
            "output_throughput": self.output_tokens / self.duration,
            "total_token_throughput": (self.input_tokens + self.output_tokens) / self.duration,
            "max_concurrent_requests": self.peak,
        }
        for name, values in self.values.items():
            facts |= {f"{key}_{name}_ms": value for key, value in self.statistics(values).items()}
        return facts

    def statistics(self, values: Sequence[float]) -> dict[str, float | None]:
        """mean, median, std and p50, p99, ... of some values; None where there are none."""
        keys = ["mean", "median", "std", *(percentile_key(percentile) for percentile in self.percentiles)]
        if not values:
            return dict.fromkeys(keys)
        numbers = [np.mean(values), np.median(values), np.std(values), *np.percentile(values, self.percentiles)]
        return {key: float(number) for key, number in zip(keys, numbers, strict=True)}


def percentile_key(percentile: float) -> str:
    """99 -> p99, 99.9 -> p99.9."""
    return f"p{percentile:g}"


def summarize(
    answers: Sequence[Answer],
    duration: float,
    *,
    percentiles: Sequence[float] = (99.0,),
    goals: Mapping[str, float] | None = None,
) -> Summary:
    """Count and measure. `duration` in seconds; `goals` are milliseconds by metric (ttft, tpot, e2el)."""
    whole = [answer for answer in answers if answer.error is None]
    reasons: dict[str, int] = {}
    for answer in answers:
        if answer.error is not None:
            reasons[answer.error] = reasons.get(answer.error, 0) + 1
    values = {
        "ttft": [1000 * answer.ttft for answer in whole if answer.ttft is not None],
        "tpot": [1000 * answer.tpot for answer in whole if answer.tpot is not None],
        "itl": [1000 * gap for answer in whole for gap in answer.itl],
        "e2el": [1000 * answer.e2el for answer in whole],
    }
    return Summary(
        duration=duration,
        completed=len(whole),
        failed=len(answers) - len(whole),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        input_tokens=sum(answer.input_tokens for answer in whole),
        output_tokens=sum(answer.output_tokens for answer in whole),
        good=sum(_is_good(answer, goals) for answer in whole) if goals else None,
        peak=_peak(answers),
        values=values,
        percentiles=tuple(sorted({99.0, *percentiles})),
    )


def _is_good(answer: Answer, goals: Mapping[str, float]) -> bool:
    """A figure that an answer does not have (no second token) misses no goal."""
    found = {"ttft": answer.ttft, "tpot": answer.tpot, "e2el": answer.e2el}
    return all(1000 * (found[name] or 0.0) <= limit for name, limit in goals.items())


def _peak(answers: Sequence[Answer]) -> int:
    """An end counts before a beginning at the same moment."""
    changes = sorted([(answer.sent, 1) for answer in answers] + [(answer.ended, -1) for answer in answers])
    return max(np.cumsum([change for _, change in changes]).tolist(), default=0)
