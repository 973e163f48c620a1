"""Real engine processes (a stand-in without torch) that die, hang, refuse and are stopped."""

import asyncio
import os
import random
import signal
import time

import pytest
import support.stand_in_engine as stand_in
from support.supervised import CONFIG, TOKENIZER, Launches, engine_with, fold, gone, until

from quire.engine import supervisor
from quire.engine.async_engine import AsyncEngine
from quire.engine.outputs import RequestFailed, TextDelta
from quire.engine.supervisor import GOOD_STEPS, Backoff, EngineStartError, engine_process


async def test_tokens_from_a_process_and_a_clean_end() -> None:
    async with engine_with() as (engine, launches):
        delta = await fold(engine, 10, 11, max_tokens=5)
        assert (delta.token_ids, delta.finish_reason) == ((10, 11, 10, 11, 10), "length")
        answers = await asyncio.gather(*(fold(engine, i, max_tokens=20) for i in range(100, 150)))
        assert [answer.token_ids[7] for answer in answers] == list(range(100, 150))
    assert launches.started[0].process.returncode == 0


async def test_kill_nine_under_load_again_and_again() -> None:
    """Every waiting client gets its error at once (a busy machine: three seconds), and the next request works."""
    random_ = random.Random(2)
    async with engine_with() as (engine, launches):
        for number in range(2):
            waiting = [asyncio.create_task(fold(engine, 20 + i, max_tokens=10**6)) for i in range(8)]
            before = engine.statistics.num_steps
            await until(lambda before=before: engine.statistics.num_steps > before + random_.randrange(1, 60))  # type: ignore[misc]
            killed = time.monotonic()
            os.kill(launches.pid, signal.SIGKILL)
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, RequestFailed)
                assert result.failure.code == "engine_restarting"
            assert time.monotonic() - killed < 3
            assert engine.registered() == 0
            await until(lambda: engine.state == "ready")
            assert (await fold(engine, 5)).num_output_tokens == 4
            assert engine.restarts == number + 1


async def test_a_hung_engine_is_killed_and_a_slow_one_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    async with engine_with(hang_limit=1.0) as (engine, launches):
        assert (await fold(engine, stand_in.SLOW)).num_output_tokens == 4
        assert (engine.hangs, engine.restarts) == (0, 0)
        await asyncio.sleep(1.2)  # idle for longer than the limit
        assert engine.hangs == 0
        with pytest.raises(RequestFailed) as failed:
            await fold(engine, stand_in.HANG)
        assert failed.value.failure.code == "engine_restarting"
        assert engine.hangs == 1
        assert launches.started[0].process.returncode in (-signal.SIGTERM, -signal.SIGKILL)
        await until(lambda: engine.state == "ready")
        assert (await fold(engine, 5)).num_output_tokens == 4
    assert "stand_in_engine.py" in capfd.readouterr().err


async def until_it_is_answered(engine: AsyncEngine, *prompt: int) -> TextDelta:
    """As a client's library asks: again after each 503."""
    while True:
        try:
            return await fold(engine, *prompt, max_tokens=3)
        except RequestFailed as failed:
            if failed.failure.status != 503:
                raise
        await until(lambda: engine.state == "ready")


async def test_a_request_that_crashes_engines_is_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    """F07: sent ten times, among others that are answered: at most two restarts."""
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01, 0.02))
    async with engine_with() as (engine, _):
        innocents = [asyncio.create_task(until_it_is_answered(engine, 20 + i)) for i in range(6)]
        codes = []
        for _ in range(10):
            await until(lambda: engine.state == "ready")
            with pytest.raises(RequestFailed) as failed:
                await fold(engine, stand_in.CRASH)
            codes.append(failed.value.failure.code)
        assert codes == ["engine_restarting"] + 9 * ["request_quarantined"]
        assert (engine.restarts, engine.quarantines) == (2, 1)
        assert [answer.token_ids[0] for answer in await asyncio.gather(*innocents)] == list(range(20, 26))


async def test_garbage_from_the_engine_drops_it() -> None:
    async with engine_with() as (engine, launches):
        with pytest.raises(RequestFailed):
            await fold(engine, stand_in.GARBAGE)
        assert engine.protocol_errors == 1
        await until(lambda: engine.state == "ready")
        assert gone(launches.started[0].process.pid)
        assert (await fold(engine, 5)).num_output_tokens == 4


async def test_an_engine_that_dies_young_comes_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01, 0.02))
    async with engine_with() as (engine, launches):
        for _ in range(2):
            with pytest.raises(RequestFailed):
                await fold(engine, stand_in.DIE)
            await until(lambda: engine.state == "ready")
        assert len(launches.started) == 3


def test_pauses_grow_only_while_engines_die_young() -> None:
    backoff = Backoff()
    assert [backoff.next(0) for _ in range(9)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [backoff.next(steps) for steps in (GOOD_STEPS, GOOD_STEPS, 3, 3, 5000)] == [0.0, 0.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [(["--refuse"], 3, "config.json is missing"), (["--exit", "7"], 3, r"ended while loading \(exit code 7\)")],
)
async def test_a_first_start_that_fails_says_why(arguments: list[str], exit_code: int, message: str) -> None:
    launches = Launches(*arguments)
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=launches)
    with pytest.raises(EngineStartError, match=message) as error:
        await engine.start()
    assert error.value.exit_code == exit_code
    assert engine.state == "failed"
    assert gone(launches.pid)
    await engine.stop()


async def test_a_command_that_cannot_be_started_says_so() -> None:
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=engine_process(("/nonexistent/python",)))
    with pytest.raises(EngineStartError, match="could not be started"):
        await engine.start()


async def test_a_deaf_engine_is_killed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches("--deaf")
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=launches)
    await engine.start()
    await engine._supervisor.stop(patience=0.05)
    assert launches.started[0].process.returncode == -signal.SIGKILL
    assert gone(launches.pid)


async def test_stopping_while_loading_leaves_no_process() -> None:
    launches = Launches()
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=launches)
    starting = asyncio.create_task(engine.start())
    await until(lambda: len(launches.started) == 1)
    begin = time.monotonic()
    starting.cancel()
    await asyncio.wait([starting])
    await engine.stop()
    assert gone(launches.pid)
    assert time.monotonic() - begin < 2
