"""The loop of the engine process when the core itself raises: one request, or all of them, and a dump (F05, F07)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bench import Bench

from quire.engine import __main__ as process
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.dumps import Dumps
from quire.engine.memory_transport import memory_pair
from quire.engine.messages import Add, Configure, Failed, Query, Ready, Shutdown, ToEngine, pack_ids
from quire.engine.progress_page import ProgressPage
from quire.engine.sampling_params import SamplingParams

ADD = Add("a" * 32, pack_ids([1, 2, 3]), SamplingParams(max_tokens=2))
READY = Ready(64, 50, 64, 4, 8, 64, 0, 0, "float32", "float32", "cpu", "none: a bench", {})


class Loop:
    """`serve` around the core of a bench."""

    def __init__(self, core: EngineCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "start", lambda configure, transport, page: (core, READY))
        self.engine, self.http = memory_pair()
        self.page, self.dumps = ProgressPage.create(), Dumps(tmp_path)

    async def serve(self, *messages: ToEngine) -> list[object]:
        """What came back until `Shutdown`, or until the core raised."""
        for message in (Configure(EngineConfig(model="m", model_name="m"), "build"), *messages):
            self.http.send(message)
        process.serve(self.engine, self.page, self.dumps)
        return list(await self.http.receive())


def failing(core: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(core, name, fail)


def files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_request_that_cannot_be_taken_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Bench().core
    failing(core, "add", monkeypatch)
    heard = await Loop(core, tmp_path, monkeypatch).serve(ADD, Shutdown())
    (failed,) = [message for message in heard if isinstance(message, Failed)]
    assert failed.request_ids == (ADD.request_id,)
    assert failed.failure.code == "internal_error"
    assert not files_of(tmp_path)


async def test_a_request_that_is_half_taken_ends_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Bench().core
    failing(core._cache_reports, "note", monkeypatch)
    loop = Loop(core, tmp_path, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        await loop.serve(ADD)
    assert loop.page.read().step_request_ids == (ADD.request_id,), "a suspect"
    (dump,) = files_of(tmp_path)
    assert dump.startswith("quire-flight-crash-")


async def test_a_scheduler_that_raises_names_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Bench().core
    failing(core.scheduler, "schedule", monkeypatch)
    loop = Loop(core, tmp_path, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        await loop.serve(ADD, Query(1, "flight"))
    assert loop.page.read().step_request_ids == (ADD.request_id,)
