"""A test bench whose requests ask for ledger and cache report, on a clock that moves with the work."""

from __future__ import annotations

from typing import Any

import msgspec
from support.bench import Bench, DecodingRunner

from quire.engine.cache_report import ExplainingIndex
from quire.engine.messages import Add, CacheReport, Explain, Timings
from quire.engine.step import Step

TOKEN, HOST = 0.001, 0.0001
"""Seconds: a token in the model, and sampling a step."""


class WorkingRunner(DecodingRunner):
    """Takes time: `TOKEN` a token, and `HOST` for sampling."""

    bench: AskingBench

    def forward(self, step: Step) -> None:
        """As `FakeRunner`."""
        super().forward(step)
        self.bench.now += TOKEN * step.num_tokens

    def sample(self, step: Step, masks: None) -> None:
        """As `FakeRunner`."""
        super().sample(step, masks)
        self.bench.now += HOST


class AskingBench(Bench):
    """A `Bench` whose requests all ask, but for the ids in `silent`; `keys` gives the API keys of some."""

    def __init__(self, **options: Any) -> None:
        super().__init__(runner=WorkingRunner, **options)
        assert isinstance(self.runner, WorkingRunner)
        self.runner.bench = self
        self.silent: set[str] = set()
        self.keys: dict[str, str] = {}
        self.began: dict[str, float] = {}
        """When a request was sent, where that was before it was added."""
        self._add = self.core.add
        self.core.add = self._ask  # type: ignore[method-assign]
        if self.pool.prefix_index is not None:
            hash_bits = options.get("hash_bits", 128)
            self.pool.prefix_index = ExplainingIndex(b"secret", hash_bits)

    def _ask(self, add: Add, now: float) -> None:
        explain = None
        if add.request_id not in self.silent:
            explain = Explain(self.began.get(add.request_id, now), cache_report=True)
        key_id = self.keys.get(add.request_id, "")
        self._add(msgspec.structs.replace(add, explain=explain, key_id=key_id), now)

    def timings(self, request_id: str, choice: int = 0) -> Timings:
        """The ledger of a choice that has ended."""
        found = self.answers[request_id, choice].rows[-1].timings
        assert found is not None
        return found

    def report(self, request_id: str) -> CacheReport:
        """The cache report of a request."""
        rows = [row for (name, _), answer in self.answers.items() if name == request_id for row in answer.rows]
        (found,) = [row.cache_report for row in rows if row.cache_report is not None]
        return found
