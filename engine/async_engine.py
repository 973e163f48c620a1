"""The engine as the HTTP side sees it: ask for tokens, get text. Torch-free; everything here runs on one event loop.

`AsyncEngine` joins the pure `RequestTable` (who waits for what) to a `Supervisor` (an engine that lives) and to one
`GenerateStream` a request (the reader's end).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Literal

import msgspec

from quire.engine.config import EngineConfig
from quire.engine.detokenizer import Detokenizer
from quire.engine.generate_stream import GenerateStream
from quire.engine.messages import (
    Add,
    Answer,
    Explain,
    Failed,
    Failure,
    FromEngine,
    PoolPicture,
    Progress,
    Query,
    Ready,
    Statistics,
    StepOutputs,
    pack_ids,
)
from quire.engine.outputs import GenerateRequest, RequestFailed
from quire.engine.pool_watchers import PoolStream, PoolWatchers
from quire.engine.request_table import (
    ClientGone,
    Deliver,
    Drain,
    DrainEnded,
    EngineDown,
    EngineFailed,
    EngineKnows,
    EngineUp,
    Event,
    Fail,
    Opened,
    Reconcile,
    RequestTable,
    Rows,
    Send,
    TableState,
    Tick,
)
from quire.engine.supervisor import EngineStartError, Launch, Supervisor, engine_process
from quire.engine.tokenizer import Tokenizer

RECONCILE_SECONDS = 5.0
SETTLE_SECONDS = 0.05
"""How soon an idle engine is asked again for its statistics while they still speak of work."""


class AsyncEngine:
    """One engine behind the HTTP process. Make it, `start()` it, `generate()`, `stop()` it; all on one event loop.

    `launch` starts engines (default: processes); `on_progress` is told about loading; `hang_limit` is in seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        launch: Launch | None = None,
        max_queued: int = 2048,
        hang_limit: float = 30.0,
        on_progress: Callable[[Progress], None] | None = None,
        faults: dict[str, str] | None = None,
    ) -> None:
        self.config, self.tokenizer, self.hang_limit = config, tokenizer, hang_limit
        self.facts: Ready | None = None
        """What the engine found while loading; None before the first is ready."""
        self.statistics = Statistics()
        """The newest that the engine sent; zeros after its death."""
        self._table = RequestTable(max_queued=max_queued, secret=secrets.token_bytes(32))
        self._streams: weakref.WeakValueDictionary[str, GenerateStream] = weakref.WeakValueDictionary()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._num_queries = 0
        self._settle_seconds = SETTLE_SECONDS
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = Supervisor(
            config, launch or engine_process(), self, on_progress=on_progress, hang_limit=hang_limit, faults=faults
        )
        self._watchers = PoolWatchers(self._supervisor.send)

    @property
    def state(self) -> TableState:
        """loading, ready, restarting, draining, or failed (the first start)."""
        return self._table.state

    @property
    def restarts(self) -> int:
        """Engines lost since the first was ready."""
        return self._supervisor.restarts

    @property
    def protocol_errors(self) -> int:
        """Connections dropped because the engine's bytes were no messages."""
        return self._supervisor.protocol_errors

    @property
    def hangs(self) -> int:
        """Engines killed because they stood still with work pending."""
        return self._supervisor.hangs

    @property
    def quarantines(self) -> int:
        """Requests that were refused from then on, because they killed two engines."""
        return self._table.quarantine.num_convicted

    def standstill(self) -> float:
        """Seconds that the engine has not moved while somebody waits for it; 0 while nobody does. From any thread."""
        busy_since = self._busy_since
        if busy_since is None:
            return 0.0
        return max(0.0, time.monotonic() - max(busy_since, self._supervisor.moved_at()))

    def registered(self) -> int:
        """Requests that somebody waits for."""
        return len(self._table)

    def num_sequences(self) -> int:
        """Choices of them that have not ended."""
        return self._table.num_sequences

    async def start(self) -> Ready:
        """Start the engine and wait until it is ready; raises EngineStartError with the exit code to leave with."""
        try:
            ready = await self._supervisor.start()
        except EngineStartError:
            self._handle(EngineDown("failed"))
            raise
        self._spawn(self._reconcile())
        return ready

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, give the others `drain_seconds` to finish, end the rest, then end the engine."""
        self.begin_drain()
        if len(self._table):
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_seconds)
        self._handle(DrainEnded())
        for task in self._tasks:
            task.cancel()
        await self._supervisor.stop()

    def begin_drain(self) -> None:
        """Refuse new requests from now on; what runs goes on until `stop`, but for those who watch the pool."""
        self._handle(Drain())
        self._watchers.close()

    def generate(self, request: GenerateRequest) -> GenerateStream:
        """Register the request and send it to the engine; raises RequestFailed at once when it cannot be taken.

        Iterate over what it returns, within `contextlib.aclosing` where the reader may leave early.
        """
        params = request.params
        if params.seed is None:
            params = msgspec.structs.replace(params, seed=secrets.randbits(63))
        add = Add(
            request_id=request.request_id or secrets.token_hex(16),
            prompt_token_ids=pack_ids(request.prompt_token_ids),
            params=params,
            priority=request.priority,
            salt=request.salt,
            key_id=request.key_id,
            weight=request.weight,
            deadline=request.deadline,
            explain=_explain(request),
        )
        detokenizers = tuple(Detokenizer(self.tokenizer, params, request.prompt_token_ids) for _ in range(params.n))
        loop = asyncio.get_running_loop()
        stream = GenerateStream(add.request_id, self._client_gone, loop)
        self._streams[add.request_id] = stream
        self._handle(Opened(add, detokenizers, request.deadline))
        if (refusal := stream.take_failure()) is not None:
            raise refusal
        if request.deadline is not None:
            stream.timer = loop.call_later(max(0.0, request.deadline - time.monotonic()), self._tick)
        return stream

    def watch_pool(self) -> PoolStream:
        """Live frames of the block pool: iterate within `contextlib.aclosing`. Raises TooManyWatchers."""
        return self._watchers.watch()

    async def query(self, kind: Literal["statistics", "check", "flight"]) -> Answer:
        """Ask the engine outside the token stream; raises RequestFailed when it dies before it answers."""
        if self._table.state not in ("ready", "draining"):
            raise RequestFailed(Failure("engine_restarting", "the engine is not running", 503), 1.0)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        query_id = self._send_query(kind)
        self._answers[query_id] = answer
        try:
            return await answer
        finally:
            self._answers.pop(query_id, None)

    def engine_up(self, ready: Ready) -> None:
        """The supervisor's call (`Listener`)."""
        self.facts = ready
        self._handle(EngineUp(ready.max_num_seqs))
        self._watchers.engine_up()

    def engine_said(self, messages: Sequence[FromEngine]) -> None:
        """The supervisor's call (`Listener`)."""
        for message in messages:
            match message:
                case StepOutputs(rows, statistics):
                    self.statistics = statistics
                    self._handle(Rows(rows))
                case Failed(request_ids, failure):
                    self._handle(EngineFailed(request_ids, failure))
                case Answer():
                    self._take_answer(message)
                case PoolPicture(frame):
                    self._watchers.engine_said(frame)

    def engine_down(self, suspects: tuple[str, ...]) -> None:
        """The supervisor's call (`Listener`)."""
        self.statistics = Statistics()
        self._watchers.engine_down()
        self._handle(EngineDown(suspects=suspects))
        failure = Failure("engine_restarting", "the engine died before it answered", 503)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RequestFailed(failure, 1.0))

    def work_pending(self) -> bool:
        """The supervisor's call (`Listener`)."""
        return len(self._table) > 0 or bool(self._answers)

    def _handle(self, event: Event) -> None:
        """Let the table take the event, and carry out what it says."""
        held = len(self._table)
        for effect in self._table.handle(event, time.monotonic()):
            match effect:
                case Send(message):
                    self._supervisor.send(message)
                case Deliver(request_id, delta, last):
                    if (stream := self._streams.get(request_id)) is not None:
                        stream.deliver(delta, last)
                case Fail(request_id, failure, retry_after):
                    if (stream := self._streams.get(request_id)) is not None:
                        stream.fail(RequestFailed(failure, retry_after))
        if len(self._table):
            self._idle.clear()
            if not held:
                self._busy_since = time.monotonic()
        elif held:
            self._idle.set()
            self._busy_since = None
            self._settle_seconds = SETTLE_SECONDS
            self._send_query("statistics")

    def _client_gone(self, request_id: str) -> None:
        self._handle(ClientGone(request_id))

    def _tick(self) -> None:
        self._handle(Tick())

    def _send_query(self, kind: Literal["statistics", "check", "flight"]) -> int:
        self._num_queries += 1
        self._supervisor.send(Query(self._num_queries, kind))
        return self._num_queries

    def _take_answer(self, answer: Answer) -> None:
        self.statistics = answer.statistics
        waiting = self._answers.get(answer.query_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
        elif (
            waiting is None
            and not len(self._table)
            and (answer.statistics.num_running or answer.statistics.num_waiting)
        ):
            # The table is empty and the engine is still putting its things away: ask again soon.
            asyncio.get_running_loop().call_later(self._settle_seconds, self._send_query, "statistics")
            self._settle_seconds = min(2 * self._settle_seconds, RECONCILE_SECONDS)

    async def _reconcile(self) -> None:
        """Every RECONCILE_SECONDS: compare who waits with what the engine holds; when idle, check its invariants."""
        checked_at_step = 0
        while True:
            await asyncio.sleep(RECONCILE_SECONDS)
            if self.state not in ("ready", "draining"):
                continue
            with contextlib.suppress(RequestFailed):
                if len(self._table) or self.statistics.num_running or self.statistics.num_waiting:
                    await self._reconcile_once()
                elif self.statistics.num_steps != checked_at_step:
                    answer = await self.query("check")
                    checked_at_step = answer.statistics.num_steps
                    if answer.violations:
                        text = "; ".join(answer.violations)
                        await self._supervisor.condemn(f"the idle engine violates its invariants: {text}")

    async def _reconcile_once(self) -> None:
        asked = self._table.request_ids()
        self._handle(Reconcile())
        # Asked twice: a request that ended just before the first answer has its last row sent before the second.
        first = await self.query("statistics")
        second = await self.query("statistics")
        self._handle(EngineKnows(asked, frozenset((*first.request_ids, *second.request_ids))))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _explain(request: GenerateRequest) -> Explain | None:
    if not (request.timings or request.cache_report):
        return None
    return Explain(began=time.monotonic() if request.timings else None, cache_report=request.cache_report)
