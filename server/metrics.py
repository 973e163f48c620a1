"""Prometheus metrics: vLLM's stems with our prefix, labels from the configuration only.

What the engine counts is read from its latest `Statistics` when somebody asks; what a client feels is observed here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quire.engine.messages import Ready, Statistics
from quire.engine.outputs import TextDelta

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0),
    *(20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
TOKEN_BUCKETS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
CANCEL_CAUSES = ("client_gone", "stalled")
FINISH_REASONS = ("stop", "length", "aborted", "timeout", "error")


class EngineView:
    """What metrics read of the engine at the moment of asking."""

    def __init__(
        self,
        statistics: Callable[[], Statistics],
        facts: Callable[[], Ready | None],
        restarts: Callable[[], int],
        hangs: Callable[[], int] = lambda: 0,
        quarantines: Callable[[], int] = lambda: 0,
        standstill: Callable[[], float] = lambda: 0.0,
        lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.statistics, self.facts, self.restarts = statistics, facts, restarts
        self.hangs, self.quarantines = hangs, quarantines
        self.standstill, self.lag = standstill, lag


class Metrics:
    """All metrics of this server, in a registry of their own."""

    def __init__(self, prefix: str, model_name: str, engine: EngineView, clock: Callable[[], float]) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.clock = clock
        self._engine = engine
        self._lock = threading.Lock()
        self._last_step = 0
        self._prefix, self._labels = prefix, {"model_name": model_name}
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self.cached_tokens = self._counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated for clients.")
        self._success = Counter(
            f"{prefix}:request_success",
            "Choices by how they ended.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._rejections = Counter(
            f"{prefix}:admission_rejections",
            "Requests refused before the engine, by error code.",
            ["model_name", "reason"],
            registry=self.registry,
        )
        self._cancels = Counter(
            f"{prefix}:request_cancels",
            "Requests whose client left, or took nothing any more.",
            ["model_name", "cause"],
            registry=self.registry,
        )
        for cause in CANCEL_CAUSES:
            self._cancels.labels(model_name, cause)
        for reason in FINISH_REASONS:
            self._success.labels(model_name, reason)
        histogram = self._histogram
        self.ttft = histogram("time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS)
        self.itl = histogram("inter_token_latency_seconds", "Between tokens of one choice.", ITL_BUCKETS)
        self.tpot = histogram("request_time_per_output_token_seconds", "Decode time per token.", ITL_BUCKETS)
        self.e2e = histogram("e2e_request_latency_seconds", "From arrival to the last token.", LATENCY_BUCKETS)
        self.queue = histogram("request_queue_time_seconds", "Waiting for the first step.", LATENCY_BUCKETS)
        self.prefill = histogram("request_prefill_time_seconds", "First step to first token.", LATENCY_BUCKETS)
        self.decode = histogram("request_decode_time_seconds", "First token to last token.", LATENCY_BUCKETS)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS)
        self.request_generation = histogram("request_generation_tokens", "Tokens of a choice.", TOKEN_BUCKETS)
        self.iteration = histogram("iteration_tokens_total", "Tokens computed by a step.", TOKEN_BUCKETS)
        self.registry.register(_EngineCollector(prefix, model_name, engine))

    def rejected(self, reason: str) -> None:
        """Count a refusal; `reason` is an error code of ours, never text of a client."""
        self._rejections.labels(self._labels["model_name"], reason).inc()

    def client_gone(self, *, stalled: bool) -> None:
        """Count a client that left, or one that was cut because it stalled."""
        self._cancels.labels(self._labels["model_name"], CANCEL_CAUSES[stalled]).inc()

    def ended(self, reason: str) -> None:
        """Count the end of a choice."""
        self._success.labels(self._labels["model_name"], reason).inc()

    def observe_step(self) -> None:
        """Observe the engine's latest step, once; called with every delta, so every step is seen that gave one."""
        statistics = self._engine.statistics()
        if statistics.num_steps != self._last_step:
            self._last_step = statistics.num_steps
            self.iteration.observe(statistics.step_tokens)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. From any thread."""
        with self._lock:
            return prometheus_client.generate_latest(self.registry)

    def _counter(self, stem: str, text: str) -> Counter:
        counter = Counter(f"{self._prefix}:{stem}", text, ["model_name"], registry=self.registry)
        return counter.labels(**self._labels)

    def _histogram(self, stem: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        name = f"{self._prefix}:{stem}"
        histogram = Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets)
        return histogram.labels(**self._labels)


class CallTimer:
    """Observes one call that was accepted: told of each delta, and of the end.

    `arrival` is the clock's time at which the call came, `prompt_lengths` are in tokens, `n` choices of each prompt.
    """

    def __init__(self, metrics: Metrics, arrival: float, prompt_lengths: Sequence[int], n: int) -> None:
        self._metrics, self._arrival = metrics, arrival
        self._choices: dict[tuple[int, int], _ChoiceTimes] = {}
        self._open = len(prompt_lengths) * n
        for length in prompt_lengths:
            metrics.prompt_tokens.inc(length)
            metrics.request_prompt.observe(length)

    def cut_off(self, reason: str) -> None:
        """The call ended early: what had not finished ended for this reason."""
        for _ in range(self._open):
            self._metrics.ended(reason)
        self._open = 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens that the choices have so far."""
        return sum(times.tokens for times in self._choices.values())

    def observe(self, prompt: int, delta: TextDelta) -> None:
        """Take one delta into account."""
        now = self._metrics.clock()
        self._metrics.observe_step()
        times = self._choices.get((prompt, delta.choice))
        if times is None and (delta.token_ids or delta.num_output_tokens):
            times = self._begin_choice(prompt, delta, now)
        elif times is not None and delta.num_output_tokens > times.tokens:
            new = delta.num_output_tokens - times.tokens
            gap = (now - times.last) / new
            for _ in range(new):
                self._metrics.itl.observe(gap)
            self._metrics.generation_tokens.inc(new)
            times.last, times.tokens = now, delta.num_output_tokens
        if delta.finish_reason is not None:
            self._end_choice(times, delta, now)

    def _begin_choice(self, prompt: int, delta: TextDelta, now: float) -> _ChoiceTimes:
        metrics = self._metrics
        if delta.choice == 0:
            metrics.ttft.observe(now - self._arrival)
            metrics.queue.observe(delta.queue_seconds)
            metrics.prefill.observe(max(0.0, now - self._arrival - delta.queue_seconds))
            metrics.cached_tokens.inc(delta.num_cached_tokens)
        metrics.generation_tokens.inc(delta.num_output_tokens)
        times = self._choices[prompt, delta.choice] = _ChoiceTimes(now, delta.num_output_tokens)
        return times

    def _end_choice(self, times: _ChoiceTimes | None, delta: TextDelta, now: float) -> None:
        metrics = self._metrics
        self._open -= 1
        metrics.ended(delta.finish_reason or "error")
        metrics.request_generation.observe(delta.num_output_tokens)
        metrics.e2e.observe(now - self._arrival)
        if times is not None:
            metrics.decode.observe(now - times.first)
            if times.tokens > times.first_tokens:
                metrics.tpot.observe((now - times.first) / (times.tokens - times.first_tokens))


class _ChoiceTimes:
    __slots__ = ("first", "first_tokens", "last", "tokens")

    def __init__(self, now: float, tokens: int) -> None:
        self.first = self.last = now
        self.tokens = self.first_tokens = tokens


class _EngineCollector(Collector):
    """Gauges and counters of the engine. Its counters begin at zero after a restart, ours go on."""

    COUNTERS = (
        ("prefix_cache_queries", "prefix_cache_queries", "Tokens looked up in the prefix cache."),
        ("prefix_cache_hits", "prefix_cache_hits", "Tokens found in the prefix cache."),
        ("num_preemptions", "num_preemptions", "Sequences that lost their blocks and were computed again."),
        ("num_engine_steps", "num_steps", "Steps of the engine."),
    )

    def __init__(self, prefix: str, model_name: str, engine: EngineView) -> None:
        self._prefix, self._model_name, self._engine = prefix, model_name, engine
        self._base = dict.fromkeys((field for _, field, _ in self.COUNTERS), 0)
        self._last = dict(self._base)

    def describe(self) -> list[Metric]:
        """Nothing: what is collected does not depend on a first collection."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The engine's figures of this moment."""
        statistics = self._engine.statistics()
        usable = max(1, statistics.num_blocks)
        yield self._gauge("num_requests_running", "Sequences that run.", statistics.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", statistics.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Blocks in use, 0..1.", statistics.num_used_blocks / usable)
        yield self._gauge("kv_cache_blocks_used", "Blocks of running sequences.", statistics.num_used_blocks)
        yield self._gauge("kv_cache_blocks_cached", "Blocks that hold a prefix.", statistics.num_cached_blocks)
        yield self._gauge(
            "engine_step_age_seconds", "Since the engine moved, while it has work.", self._engine.standstill()
        )
        yield self._gauge("event_loop_lag_seconds", "The HTTP side's longest delay lately.", self._engine.lag())
        for stem, field, text in self.COUNTERS:
            yield self._counter(stem, text, self._grown(field, getattr(statistics, field)))
        yield self._counter("engine_restarts", "Engines started after the first.", self._engine.restarts())
        yield self._counter("engine_hangs", "Engines killed because they stood still.", self._engine.hangs())
        quarantines = self._engine.quarantines()
        yield self._counter("request_quarantines", "Requests refused because they killed engines.", quarantines)
        facts = self._engine.facts()
        if facts is not None:
            yield self._cache_config(facts)

    def _grown(self, field: str, value: int) -> int:
        if value < self._last[field]:
            self._base[field] += self._last[field]
        self._last[field] = value
        return self._base[field] + value

    def _gauge(self, stem: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}:{stem}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, stem: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}:{stem}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _cache_config(self, facts: Ready) -> Metric:
        labels = {
            "model_name": self._model_name,
            "block_size": str(facts.block_size),
            "num_gpu_blocks": str(facts.num_blocks),
            "cache_dtype": facts.cache_dtype,
            "kv_cache_bytes": str(facts.kv_cache_bytes),
        }
        family = GaugeMetricFamily(f"{self._prefix}:cache_config_info", "The KV cache.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family
