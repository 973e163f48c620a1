"""AsyncEngine over a fake engine: streams, cancels, deadlines, drain, overload, death and restart."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.fake_engine import FakeEngine, Script, echo_script, text_script
from support.tokenizers import starter_tokenizer

from quire.engine import async_engine, supervisor
from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.detokenizer import Detokenizer
from quire.engine.generate_stream import GenerateStream
from quire.engine.messages import Add, Cancel, Failure, LiveIds, OutputRow, Query, StartFailed
from quire.engine.outputs import GenerateRequest, RequestFailed, TextDelta
from quire.engine.sampling_params import SamplingParams
from quire.engine.supervisor import EngineStartError

CONFIG = EngineConfig(model="/nowhere", model_name="fake")
TOKENIZER = starter_tokenizer()
EOS = TOKENIZER.eos_token_id
assert EOS is not None


@contextlib.asynccontextmanager
async def engine_with(
    script: Script = echo_script, *, max_queued: int = 2048, max_num_seqs: int = 64
) -> AsyncIterator[tuple[AsyncEngine, FakeEngine]]:
    fake = FakeEngine(script, max_num_seqs=max_num_seqs)
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=fake.launch, max_queued=max_queued)
    await engine.start()
    yield engine, fake
    await engine.stop()
    assert engine.registered() == engine.num_sequences() == 0
    assert fake.sequences == {}


def request(prompt: str = "Hello", deadline: float | None = None, **params: object) -> GenerateRequest:
    params = {"max_tokens": 100, "stop_token_ids": (EOS,), "temperature": 0.0} | params
    return GenerateRequest(
        prompt_token_ids=TOKENIZER.encode(prompt),
        params=SamplingParams(**params),  # type: ignore[arg-type]
        deadline=deadline,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def fold(stream: GenerateStream) -> dict[int, TextDelta]:
    """The whole answer, by choice."""
    choices: dict[int, TextDelta] = {}
    async with contextlib.aclosing(stream):
        async for delta in stream:
            choices[delta.choice] = choices[delta.choice].merge(delta) if delta.choice in choices else delta
    return choices


async def test_text_arrives_and_ends() -> None:
    async with engine_with(text_script(TOKENIZER, "Good day, café 🎉!")) as (engine, fake):
        assert engine.state == "ready"
        assert engine.facts == fake.ready
        (delta,) = (await fold(engine.generate(request()))).values()
        assert delta.text == "Good day, café 🎉!"
        assert (delta.finish_reason, delta.stop_reason) == ("stop", None)
        assert delta.num_output_tokens == len(delta.token_ids)
        assert delta.queue_seconds == 0.001
        (add,) = fake.messages(Add)
        assert isinstance(add, Add)
        assert add.params.seed is not None
        assert len(add.request_id) == 32


async def test_choices_are_told_apart_and_max_tokens_ends() -> None:
    async with engine_with(text_script(TOKENIZER, "first", "second", end=False)) as (engine, _):
        choices = await fold(engine.generate(request(n=2)))
        assert {i: d.text for i, d in choices.items()} == {0: "first", 1: "second"}
        (delta,) = (await fold(engine.generate(request(max_tokens=1)))).values()
        assert (delta.finish_reason, delta.num_output_tokens) == ("length", 1)


async def test_a_stop_string_cancels_its_choice_alone() -> None:
    async with engine_with(text_script(TOKENIZER, "one two three", "quite another answer")) as (engine, fake):
        choices = await fold(engine.generate(request(n=2, stop=(" two",))))
        assert (choices[0].text, choices[0].finish_reason, choices[0].stop_reason) == ("one", "stop", " two")
        assert choices[1].text == "quite another answer"
        (cancel,) = fake.messages(Cancel)
        assert isinstance(cancel, Cancel)
        assert (cancel.choice, cancel.reason) == (0, "stop_string")


async def test_a_slow_reader_gets_merged_deltas() -> None:
    async with engine_with(text_script(TOKENIZER, "a b c d e f g h i j k l m n o p")) as (engine, fake):
        stream = engine.generate(request())
        await until(lambda: engine.registered() == 0)
        deltas = [delta async for delta in stream]
        assert len(deltas) == 1
        assert deltas[0].text == "a b c d e f g h i j k l m n o p"
        assert deltas[0].finish_reason == "stop"
        assert fake.num_steps > 10


async def test_leaving_early_cancels() -> None:
    async with engine_with() as (engine, fake):
        async with contextlib.aclosing(engine.generate(request(max_tokens=10_000))) as stream:
            await anext(stream)
        assert engine.registered() == 0
        task = asyncio.create_task(fold(engine.generate(request(max_tokens=10_000))))
        await until(lambda: engine.registered() > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.registered() == 0)
        await until(lambda: not fake.sequences)
        assert [c.reason for c in fake.messages(Cancel) if isinstance(c, Cancel)] == ["client_gone"] * 2


async def test_five_hundred_abandoned_streams_leave_nothing() -> None:
    """Dropped before the first delta, after it, in a cancelled task; nobody calls aclose."""
    async with engine_with() as (engine, fake):

        async def read(stream: GenerateStream, count: int) -> None:
            for _ in range(count):
                await anext(stream)

        for number in range(500):
            task = asyncio.create_task(read(engine.generate(request(max_tokens=10_000)), number % 4))
            if number % 5 == 0:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
        del task
        gc.collect()
        await until(lambda: engine.registered() == 0 and not fake.sequences)
        assert len(fake.messages(Add)) == 500


async def test_a_deadline_ends_with_what_there_is() -> None:
    async with engine_with() as (engine, fake):
        fake.hold()
        deadline = time.monotonic() + 0.03
        stream = engine.generate(request(deadline=deadline, n=2))
        await until(lambda: len(fake.messages(Add)) > 0)
        (add,) = fake.messages(Add)
        assert isinstance(add, Add)
        assert add.deadline == deadline, "the engine keeps it too"
        fake.step()
        choices = await fold(stream)
        assert {d.finish_reason for d in choices.values()} == {"timeout"}
        assert choices[0].num_output_tokens <= 1
        await until(lambda: len(fake.messages(Cancel)) > 0)
        (cancel,) = fake.messages(Cancel)
        assert isinstance(cancel, Cancel)
        assert cancel.reason == "deadline"


async def test_death_fails_what_is_in_flight_and_the_next_request_works() -> None:
    async with engine_with() as (engine, fake):
        fake.hold()
        streams = [engine.generate(request()) for _ in range(3)]
        waiting = [asyncio.create_task(fold(stream)) for stream in streams]
        question = asyncio.create_task(engine.query("check"))
        await until(lambda: len(fake.messages(Add)) == 3)
        fake.forget.add(Query)
        fake.die()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, RequestFailed)
            assert (result.failure.code, result.failure.status) == ("engine_restarting", 503)
            assert result.retry_after is not None
        await asyncio.wait([question])
        assert engine.registered() == 0
        fake.forget.clear()
        fake.release()
        while engine.state != "ready":
            with pytest.raises(RequestFailed):
                engine.generate(request())
            await asyncio.sleep(0)
        assert (engine.restarts, fake.launches) == (1, 2)
        assert (await fold(engine.generate(request(max_tokens=3))))[0].num_output_tokens == 3


async def test_a_fault_of_ours_restarts_the_engine_and_serving_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine_with() as (engine, fake):
        with monkeypatch.context() as patch:
            patch.setattr(GenerateStream, "deliver", lambda self, delta, last: 1 / 0)
            with pytest.raises(RequestFailed) as failed:
                await fold(engine.generate(request()))
        assert failed.value.failure.code == "engine_restarting"
        assert "ZeroDivisionError" in caplog.text
        await until(lambda: engine.state == "ready")
        assert (await fold(engine.generate(request(max_tokens=3))))[0].num_output_tokens == 3
        assert fake.launches == 2


async def test_a_fault_in_one_text_ends_that_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    push = Detokenizer.push
    async with engine_with() as (engine, fake):
        fake.hold()
        bad, good = engine.generate(request(max_tokens=3)), engine.generate(request(max_tokens=4))

        def fail_one(self: Detokenizer, row: OutputRow) -> TextDelta | None:
            assert row.request_id != bad.request_id, "planted"
            return push(self, row)

        monkeypatch.setattr(Detokenizer, "push", fail_one)
        fake.release()
        with pytest.raises(RequestFailed, match="AssertionError") as failed:
            await fold(bad)
        assert (failed.value.failure.code, failed.value.failure.status) == ("internal_error", 500)
        assert (await fold(good))[0].num_output_tokens == 4
        assert engine.restarts == 0


async def test_one_failed_choice_fails_its_siblings_and_nobody_else() -> None:
    async with engine_with() as (engine, fake):
        fake.hold()
        group = engine.generate(request(n=2))
        other = engine.generate(request(max_tokens=2))
        await until(lambda: len(fake.messages(Add)) == 2)
        (first, _) = [add.request_id for add in fake.messages(Add) if isinstance(add, Add)]
        row = fake.sequences[first, 1].next_row()
        row.finish_reason, row.failure = "error", Failure("model_numerics", "NaN")
        fake.say(row)
        choices = await fold(group)
        assert {d.finish_reason for d in choices.values()} == {"error"}
        assert {d.failure.code for d in choices.values() if d.failure} == {"model_numerics"}
        fake.release()
        assert (await fold(other))[0].finish_reason == "length"


async def test_the_engine_may_give_requests_up() -> None:
    async with engine_with() as (engine, fake):
        fake.hold()
        streams = [engine.generate(request(max_tokens=2)) for _ in range(2)]
        await until(lambda: len(fake.messages(Add)) == 2)
        fake.fail((streams[0].request_id,), Failure("internal_error", "convicted"))
        with pytest.raises(RequestFailed, match="convicted"):
            await fold(streams[0])
        fake.release()
        assert (await fold(streams[1]))[0].finish_reason == "length"


async def test_a_lost_add_fails_within_a_reconcile_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "RECONCILE_SECONDS", 0.02)
    async with engine_with() as (engine, fake):
        fake.forget.add(Add)
        with pytest.raises(RequestFailed) as failed:
            await fold(engine.generate(request()))
        assert failed.value.failure.code == "request_lost"
        assert fake.messages(LiveIds)


async def test_a_lost_cancel_is_made_good_by_the_lease_though_nobody_else_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine holds a request for nobody: it must hear of an empty table too. Found by the simulator (I20)."""
    monkeypatch.setattr(async_engine, "RECONCILE_SECONDS", 0.02)
    async with engine_with() as (engine, fake):
        fake.hold()
        fake.forget.add(Cancel)
        await engine.generate(request(max_tokens=100)).aclose()
        await until(lambda: LiveIds(()) in fake.messages(LiveIds))
        assert engine.registered() == 0
        fake.sequences.clear()


async def test_admission_is_exact_under_a_burst() -> None:
    async with engine_with(max_queued=10, max_num_seqs=4) as (engine, fake):
        fake.hold()
        admitted, refused = [], []
        for _ in range(100):
            try:
                admitted.append(engine.generate(request(n=2, max_tokens=1)))
            except RequestFailed as error:
                refused.append(error)
        assert len(admitted) == 7
        assert {(e.failure.code, e.failure.status) for e in refused} == {("server_is_overloaded", 503)}
        assert all(error.retry_after is not None and 1 <= error.retry_after <= 60 for error in refused)
        fake.release()
        for stream in admitted:
            assert len(await fold(stream)) == 2
        assert (await fold(engine.generate(request(max_tokens=1))))[0].finish_reason == "length"


async def test_drain_refuses_new_ones_and_finishes_the_others() -> None:
    async with engine_with() as (engine, fake):
        fake.hold()
        running = asyncio.create_task(fold(engine.generate(request(max_tokens=5))))
        stuck = engine.generate(request(max_tokens=100))
        engine.begin_drain()
        assert engine.state == "draining"
        with pytest.raises(RequestFailed) as failed:
            engine.generate(request())
        assert (failed.value.failure.code, failed.value.failure.status) == ("server_draining", 503)
        await until(lambda: len(fake.messages(Add)) == 2)
        for _ in range(5):
            fake.step()
        assert (await running)[0].finish_reason == "length"
        await engine.stop(drain_seconds=0.02)
        with pytest.raises(RequestFailed) as failed:
            await fold(stuck)
        assert failed.value.failure.code == "server_draining"
        assert [c.reason for c in fake.messages(Cancel) if isinstance(c, Cancel)] == ["drain"]


async def test_a_failed_start_carries_the_exit_code() -> None:
    fake = FakeEngine(start_failed=StartFailed("model fake: config.json is missing", 3))
    engine = AsyncEngine(CONFIG, TOKENIZER, launch=fake.launch)
    assert engine.state == "loading"
    with pytest.raises(RequestFailed) as loading:
        engine.generate(request())
    assert loading.value.failure.code == "model_loading"
    with pytest.raises(EngineStartError, match=r"config\.json is missing") as error:
        await engine.start()
    assert error.value.exit_code == 3
    assert engine.state == "failed"
    await engine.stop()


async def test_statistics_settle_when_the_table_is_empty() -> None:
    async with engine_with() as (engine, fake):
        stream = engine.generate(request(max_tokens=10_000))
        await anext(stream)
        await until(lambda: engine.statistics.num_running == 1)
        await stream.aclose()
        await until(lambda: engine.statistics.num_running == 0)
        assert fake.messages(Query)
        answer = await engine.query("check")
        assert answer.request_ids == ()


async def test_an_engine_that_violates_its_invariants_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F28: doubtful keys and values are nobody's to read."""
    monkeypatch.setattr(async_engine, "RECONCILE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "DUMP_SECONDS", 0.0)
    async with engine_with() as (engine, fake):
        fake.violations = ("I2: block 3 has a reference too many",)
        await fold(engine.generate(request()))
        await until(lambda: engine.restarts > 0 and engine.state == "ready")
        assert await fold(engine.generate(request()))
    assert "block 3 has a reference too many" in caplog.text
    assert engine.quarantines == 0
