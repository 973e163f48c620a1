"""Memory that creeps up: the stages, who is cut off, and what counts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import StubEngine

from quire.server.admission import Admission, Pressure
from quire.server.limits import Limits
from quire.server.memory_gauge import MemoryGauge, family, family_memory, private_memory

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}


def admission_with(count: int) -> Admission:
    admission = Admission(Limits(), 100, lambda: 0.0)
    for _ in range(count):
        admission.enter()
    return admission


@pytest.mark.parametrize(
    ("taken", "pressure", "num_shed"),
    [
        (0, Pressure.NONE, 0),
        (84, Pressure.NONE, 0),
        (85, Pressure.HIGH, 0),
        (95, Pressure.FULL, 0),
        (98, Pressure.FULL, 2),
        (-50, Pressure.NONE, 0),
    ],
)
def test_stages(taken: int, pressure: Pressure, num_shed: int) -> None:
    """Of what was free at the start, not of what the model takes."""
    admission, held = admission_with(16), 5000
    gauge = MemoryGauge(admission, 100, lambda: held)
    held += taken
    gauge.look()
    assert admission.pressure is pressure
    shed = [ticket.shed.is_set() for ticket in admission._tickets]
    assert shed == [False] * (16 - num_shed) + [True] * num_shed, "the newest"


def test_the_pressure_goes_when_the_memory_comes_back() -> None:
    admission, held = admission_with(0), 0
    gauge = MemoryGauge(admission, 100, lambda: held)
    for held, pressure in ((99, Pressure.FULL), (90, Pressure.HIGH), (10, Pressure.NONE)):  # noqa: B007
        gauge.look()
        assert admission.pressure is pressure


async def test_a_request_that_is_cut_off_is_told_so(app: FastAPI, http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.gate = asyncio.Event()
    running = asyncio.create_task(http.post(CHAT, json=ASK))
    await engine.entered.wait()
    app.state.service.admission.shed_newest(1)
    answer = await running
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert engine.cancelled == 1


def test_swapped_pages_count_and_file_pages_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "status").write_text("Name:\tx\nRssAnon:\t   40 kB\nRssFile:\t 9000 kB\nVmSwap:\t    2 kB\n")
    assert private_memory(7, tmp_path) == 42 << 10
    assert private_memory(8, tmp_path) == 0


def test_this_process_is_of_its_family() -> None:
    assert family()[0] == os.getpid()
    assert family_memory() > 1 << 20
