"""An `AsyncEngine` over stand-in engine processes, for tests of supervision."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import support.stand_in_engine as stand_in
from support.tokenizers import starter_tokenizer

from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.outputs import GenerateRequest, TextDelta
from quire.engine.sampling_params import SamplingParams
from quire.engine.supervisor import ProcessEngine

CONFIG = EngineConfig(model="/nowhere", model_name="stand-in")
TOKENIZER = starter_tokenizer()


def command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, stand_in.__file__, *arguments)


class Launches:
    """Remembers the processes it started."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.started: list[ProcessEngine] = []

    async def __call__(self) -> ProcessEngine:
        self.started.append(await ProcessEngine.start(command(*self.arguments)))
        return self.started[-1]

    @property
    def pid(self) -> int:
        return self.started[-1].process.pid


@contextlib.asynccontextmanager
async def engine_with(hang_limit: float = 30.0) -> AsyncIterator[tuple[AsyncEngine, Launches]]:
    launches = Launches()
    before = len(os.listdir("/proc/self/fd"))
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=launches, hang_limit=hang_limit)
    await engine.start()
    yield engine, launches
    await engine.stop()
    assert engine.registered() == 0
    assert all(gone(process.process.pid) for process in launches.started)
    assert len(os.listdir("/proc/self/fd")) == before


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def fold(engine: AsyncEngine, *prompt: int, max_tokens: int = 4) -> TextDelta:
    params = SamplingParams(max_tokens=max_tokens)
    whole: TextDelta | None = None
    async with contextlib.aclosing(
        engine.generate(GenerateRequest(prompt_token_ids=[*prompt], params=params))
    ) as deltas:
        async for delta in deltas:
            whole = delta if whole is None else whole.merge(delta)
    assert whole is not None
    return whole
