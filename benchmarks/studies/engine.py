"""An engine in this process, stepped by hand so that each step can be timed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from quire.engine.config import EngineConfig
from quire.engine.messages import Add, OutputRow, pack_ids
from quire.engine.model_folder import STARTER
from quire.engine.process import build_engine
from quire.engine.sampling_params import SamplingParams

_FIRST_ORDINARY_TOKEN = 300
"""Behind special tokens and single bytes in the vocabularies that we know."""


@dataclass
class Times:
    """Seconds from the first step to each new token of a sequence, and how many sequences each step served."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    cached: int = 0
    """Prompt tokens that came from the prefix cache."""


class Engine:
    """`options` are fields of EngineConfig. Greedy; answers have the length that is ordered."""

    def __init__(self, model: str | None, **options: Any) -> None:
        folder = str(STARTER) if model is None else model
        config = EngineConfig(model=folder, model_name=Path(folder).name, **options)
        self._core, self.facts = build_engine(config)
        self._number = 0

    def prompt(self, chooser: random.Random, length: int) -> list[int]:
        """Random ordinary tokens."""
        first = min(_FIRST_ORDINARY_TOKEN, self.facts.vocab_size // 2)
        return [chooser.randrange(first, self.facts.vocab_size) for _ in range(length)]

    def add(self, prompt: Sequence[int], max_tokens: int) -> str:
        """A request, for `step`."""
        self._number += 1
        request_id = f"{self._number:032x}"
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0)
        self._core.add(Add(request_id, pack_ids(prompt), params), time.monotonic())
        return request_id

    def step(self) -> tuple[OutputRow, ...]:
        """One step; the rows that came of it. Raises RuntimeError where one of them failed."""
        outputs = self._core.step(time.monotonic)
        rows = () if outputs is None else outputs.rows
        failures = [row.failure for row in rows if row.failure is not None]
        if failures:
            raise RuntimeError(f"a request failed: {failures[0]}")
        return rows

    def has_work(self) -> bool:
        """Whether anybody waits for a step."""
        return self._core.has_work()

    def time_one(self, prompt: Sequence[int], max_tokens: int) -> Times:
        """A request alone."""
        self.add(prompt, max_tokens)
        times = Times()
        last = begun = perf_counter()
        while self.has_work():
            rows = self.step()
            now = perf_counter()
            for row in rows:
                if times.first == 0.0:
                    times.first, times.cached = now - begun, row.num_cached_tokens
                else:
                    times.gaps.append(now - last)
                last = now
        return times
