"""An engine without a model, for tests of everything above the process line.

    fake = FakeEngine(text_script(tokenizer, "Hello."))
    engine = AsyncEngine(config, tokenizer, launch=fake.launch)

It speaks the real messages over the in-memory transport, on the test's own event loop. `script(add, choice)` gives the
tokens of each choice. One step gives one token to each running choice; steps follow each other as long as there is work
and `running` is set: `hold()` stops them, `step()` does one by hand, `release()` lets them go on. While
somebody watches the pool, a frame follows each step and each cancel, in which every 16 tokens of a choice have a block.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from quire.engine.memory_transport import MemoryEngineTransport, MemoryHttpTransport, memory_pair
from quire.engine.messages import (
    Add,
    Answer,
    CacheReport,
    Cancel,
    Configure,
    Delay,
    Failed,
    Failure,
    FinishReason,
    LiveIds,
    OutputRow,
    PoolPicture,
    Query,
    Ready,
    Shutdown,
    StartFailed,
    Statistics,
    StepOutputs,
    Timings,
    ToEngine,
    TokenLogprobs,
    Watch,
    pack_ids,
    unpack_ids,
)
from quire.engine.pool_frame import Block, PoolFrame, SequencePicture, TablePicture
from quire.engine.progress_page import PageSnapshot
from quire.engine.tokenizer import Tokenizer
from quire.engine.transport import TransportClosed

Script = Callable[[Add, int], Iterable[int]]


def echo_script(add: Add, choice: int) -> Iterable[int]:
    """Says the prompt, again and again."""
    return itertools.cycle(unpack_ids(add.prompt_token_ids))


def text_script(tokenizer: Tokenizer, *texts: str, end: bool = True) -> Script:
    """Says `texts[choice % len(texts)]`, then the end-of-sequence token."""

    def script(add: Add, choice: int) -> Iterable[int]:
        ids = tokenizer.encode(texts[choice % len(texts)], add_special_tokens=False)
        eos = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
        return [*ids, *eos]

    return script


class _Sequence:
    """One choice that is being generated."""

    def __init__(self, add: Add, choice: int, tokens: Iterable[int]) -> None:
        self.add, self.choice = add, choice
        self._tokens: Iterator[int] = iter(tokens)
        self.count = 0
        self.blocks: list[int] = []

    def next_row(self) -> OutputRow:
        params = self.add.params
        token = next(self._tokens, None)
        reason: FinishReason | None = None
        self.count += token is not None
        if token is None or (token in params.stop_token_ids and self.count >= params.min_tokens):
            reason = "stop"
        elif self.count >= params.max_tokens:
            reason = "length"
        ids = [] if token is None else [token]
        return OutputRow(
            self.add.request_id,
            self.choice,
            pack_ids(ids),
            finish_reason=reason,
            logprobs=None if params.logprobs is None else tuple(_logprobs(i, params.logprobs) for i in ids),
            prompt_logprobs=self._prompt_logprobs() if self.count <= 1 else None,
            num_cached_tokens=0,
            queue_seconds=0.001,
            timings=None if reason is None else self._timings(),
            cache_report=self._cache_report() if self.count <= 1 else None,
        )

    def _timings(self) -> Timings | None:
        """Half of it is decoding."""
        explain = self.add.explain
        if explain is None or explain.began is None:
            return None
        ended = time.monotonic()
        sixth = int((ended - explain.began) * 1e9 / 6)
        parts = {"queue": sixth, "prefill": sixth, "others_prefill": 0, "decode": 3 * sixth, "preempted": 0}
        delays = (Delay("1f3a9c02" + "0" * 24, sixth),)
        return Timings(began=explain.began, ended=ended, sampling=sixth, delayed_by=delays, **parts)

    def _cache_report(self) -> CacheReport | None:
        """The prompt's third token is another one than a cached prompt's."""
        if self.add.explain is None or not self.add.explain.cache_report:
            return None
        prompt = unpack_ids(self.add.prompt_token_ids)
        return CacheReport(
            num_prompt_tokens=len(prompt),
            num_cached_tokens=0,
            block_size=16,
            reason="diverged",
            position=2,
            neighbour_token_ids=tuple(prompt[3:6]),
        )

    def picture(self) -> SequencePicture:
        length = len(self.add.prompt_token_ids) // 4
        return SequencePicture(
            id=f"{self.add.request_id[:8]}/{self.choice}",
            status="running",
            prompt=length,
            tokens=length + self.count,
            computed=length + self.count,
            cached=0,
            max_tokens=self.add.params.max_tokens,
            tables=(TablePicture(None, 0, tuple(self.blocks)),),
        )

    def _prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        count = self.add.params.prompt_logprobs
        if count is None or self.choice:
            return None
        return (None, *(_logprobs(i, count) for i in unpack_ids(self.add.prompt_token_ids)[1:]))


def _logprobs(token_id: int, count: int) -> TokenLogprobs:
    """Made up, and told by the token: -0.01 x (id % 100), rank 1."""
    top = tuple(range(token_id, token_id + count))
    value = -0.01 * (token_id % 100)
    return TokenLogprobs(token_id, value, 1, top, tuple(value - 0.5 * i for i in range(count)))


class FakeEngine:
    """See the module. One object plays every engine that a test's supervisor starts, one after the other."""

    def __init__(
        self,
        script: Script = echo_script,
        *,
        max_model_len: int = 2048,
        vocab_size: int = 2048,
        max_num_seqs: int = 64,
        start_failed: StartFailed | None = None,
    ) -> None:
        self.script = script
        self.ready = Ready(
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            num_blocks=256,
            block_size=16,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=256,
            weights_bytes=0,
            kv_cache_bytes=0,
            dtype="float32",
            cache_dtype="float32",
            device="cpu",
            kernels="none: a fake engine",
            seconds={},
        )
        self.start_failed = start_failed
        self.received: list[ToEngine] = []
        """Everything that came, in order."""
        self.forget: set[type] = set()
        """Message types that are lost on the way."""
        self.launches = 0
        self.num_steps = 0
        self.sequences: dict[tuple[str, int], _Sequence] = {}
        self.running = asyncio.Event()
        self.running.set()
        self.watched = False
        self._shown: dict[int, Block] = {}
        self._wake = asyncio.Event()
        self._exit_code = 1
        self.violations: tuple[str, ...] = ()
        """What the first engine answers when its invariants are asked for."""
        self._line: MemoryEngineTransport | None = None

    async def launch(self) -> FakeProcess:
        """Pass this as `launch` to `AsyncEngine`."""
        engine_end, http_end = memory_pair()
        self.launches += 1
        if self.launches > 1:
            self.violations = ()
        self.watched = False
        self.sequences.clear()
        self._line = engine_end
        engine_end.on_arrival(self._wake.set)
        return FakeProcess(self, http_end, asyncio.create_task(self._run(engine_end)))

    def hold(self) -> None:
        """No steps until `release` or `step`."""
        self.running.clear()

    def release(self) -> None:
        """Steps follow each other again."""
        self.running.set()
        self._wake.set()

    def die(self, exit_code: int = -signal.SIGKILL) -> None:
        """The process is gone, in the middle of whatever it did; by default somebody killed it."""
        assert self._line is not None
        self._exit_code = exit_code
        self._line.close()

    def fail(self, request_ids: tuple[str, ...] | None, failure: Failure) -> None:
        """Give up requests."""
        assert self._line is not None
        self.sequences = {
            k: v for k, v in self.sequences.items() if request_ids is not None and k[0] not in request_ids
        }
        self._line.send(Failed(request_ids, failure))

    def say(self, *rows: OutputRow) -> None:
        """Send rows as they are."""
        assert self._line is not None
        self._line.send(StepOutputs(rows=rows, statistics=self._statistics()))

    def step(self) -> None:
        """One token for each running choice."""
        rows = [sequence.next_row() for sequence in self.sequences.values()]
        for row in rows:
            if row.finish_reason is not None:
                del self.sequences[row.request_id, row.choice]
        self.num_steps += 1
        self.say(*rows)
        if self.watched:
            self.show("change")

    def show(self, kind: Literal["full", "change"]) -> None:
        """Send a frame of the pool."""
        assert self._line is not None
        shown: dict[int, Block] = {}
        free = sorted(set(range(256)) - {i for sequence in self.sequences.values() for i in sequence.blocks})
        for sequence in self.sequences.values():
            missing = -(-sequence.picture().tokens // 16) - len(sequence.blocks)
            sequence.blocks += free[:missing]
            del free[:missing]
            shown |= {i: (i, 1, 0) for i in sequence.blocks}
        before = {} if kind == "full" else self._shown
        changed = [block for i, block in shown.items() if before.get(i) != block]
        changed += [(i, 0, 0) for i in before if i not in shown]
        pictures = tuple(sequence.picture() for sequence in self.sequences.values())
        at = float(self.num_steps)
        frame = PoolFrame(kind, at, 256, 16, tuple(changed), (), pictures, len(pictures), 0, 0, self.num_steps)
        self._shown = shown
        self._line.send(PoolPicture(frame))

    def messages(self, kind: type) -> list[ToEngine]:
        """What came of one type."""
        return [message for message in self.received if isinstance(message, kind)]

    async def _run(self, line: MemoryEngineTransport) -> int:
        try:
            while True:
                self._wake.clear()
                for message in line.receive(0):
                    self.received.append(message)
                    if isinstance(message, Shutdown):
                        line.close()
                        return 0
                    if type(message) not in self.forget:
                        self._take(message, line)
                if self.sequences and self.running.is_set():
                    self.step()
                    await asyncio.sleep(0)
                else:
                    await self._wake.wait()
        except TransportClosed:
            return self._exit_code

    def _take(self, message: ToEngine, line: MemoryEngineTransport) -> None:
        match message:
            case Configure():
                line.send(self.start_failed or self.ready)
                if self.start_failed:
                    line.close()
            case Add():
                for choice in range(message.params.n):
                    sequence = _Sequence(message, choice, self.script(message, choice))
                    self.sequences[message.request_id, choice] = sequence
            case Cancel(request_id, choice, _):
                for key in [k for k in self.sequences if k[0] == request_id and choice in (None, k[1])]:
                    del self.sequences[key]
                if self.watched:
                    self.show("change")
            case Query(query_id, _):
                ids = tuple({request_id for request_id, _ in self.sequences})
                line.send(Answer(query_id, self._statistics(), request_ids=ids, violations=self.violations))
            case Watch(seconds):
                begins = seconds > 0 and not self.watched
                self.watched = seconds > 0
                if begins:
                    self.show("full")
            case LiveIds() | Shutdown():
                pass

    def _statistics(self) -> Statistics:
        return Statistics(
            num_running=len(self.sequences),
            num_blocks=256,
            num_used_blocks=len(self.sequences),
            num_steps=self.num_steps,
        )


class FakeProcess:
    """`RunningEngine` of a `FakeEngine`."""

    def __init__(self, engine: FakeEngine, transport: MemoryHttpTransport, task: asyncio.Task[int]) -> None:
        self.engine = engine
        self.transport = transport
        self._task = task

    def snapshot(self) -> PageSnapshot | None:
        """Moves with the steps."""
        ids = tuple(request_id for request_id, _ in self.engine.sequences)
        return PageSnapshot("idle", self.engine.num_steps, self.engine.num_steps, 0.0, ids)

    def moved_at(self) -> float:
        """Now."""
        return time.monotonic()

    def dump_stacks(self) -> None:
        """Nothing to show."""

    async def end(self, patience: float) -> int | None:
        """Close the line, which ends the task."""
        await asyncio.wait([self._task], timeout=patience)
        self.transport.close()
        await asyncio.wait([self._task])
        return self._task.result()
