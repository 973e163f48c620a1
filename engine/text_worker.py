"""Template and tokenizer work in a process that can be killed: `python -m quire.engine.text_worker`.

Templates and tokenizers are foreign code on foreign input. Small requests run in a thread of the HTTP process; large
ones, and the trial render of a model folder at start, come here. One request at a time, answered over pipes: a frame
is a little-endian uint32 length and that many bytes of msgpack. A call has CALL_SECONDS of processor time, which a busy
machine does not shorten: the kernel ends the worker (SIGPROF) at that moment, in whatever code it is, and the next call
starts a new one. The worker may use WORKER_MEMORY_BYTES more than its start needs, so that a template that fills the
memory ends itself.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

import msgspec

from quire.engine.chat_template import ChatTemplate, ChatTemplateError, ChatTemplateRefusal
from quire.engine.errors import ModelError
from quire.engine.tokenizer_files import TokenizerFiles

CALL_SECONDS = 2.0
START_SECONDS = 60.0
WALL_FACTOR = 10
"""A worker that is not even running is killed after so many times the processor time of its call."""
WORKER_MEMORY_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")
_TRIAL_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
}


class TextWorkTimeout(Exception):
    """The worker was killed because it did not answer in time, or died of what it was asked."""


class TrialRender(msgspec.Struct, frozen=True, tag=True):
    """Compile one template and render a small chat with it."""

    source: str
    special_tokens: dict[str, str]
    with_tools: bool = False


class Load(msgspec.Struct, frozen=True, tag=True):
    """Make the tokenizer that the following calls use."""

    files: TokenizerFiles
    model_name: str


class EncodeText(msgspec.Struct, frozen=True, tag=True):
    """`Tokenizer.encode`."""

    text: str
    add_special_tokens: bool


class EncodeChat(msgspec.Struct, frozen=True, tag=True):
    """`Tokenizer.encode_chat`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] | None = None


Call = TrialRender | Load | EncodeText | EncodeChat


class Order(msgspec.Struct, frozen=True):
    """One call and its processor time."""

    call: Call
    seconds: float


class Result(msgspec.Struct, frozen=True):
    """What came of a call: ids, or the template's own refusal."""

    token_ids: list[int] = []
    template_error: str | None = None


class TextWorker:
    """One worker process, started at first need. Calls block; call from a thread. Thread-safe, one call at a time."""

    def __init__(self, load: Load | None = None) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, call: Call, seconds: float = CALL_SECONDS) -> Result:
        """The result of `call`; raises TextWorkTimeout when it takes more than `seconds` of processor time."""
        with self._lock:
            if self._process is None:
                self._process = _start()
                if self._load is not None:
                    self._exchange(self._load, START_SECONDS)
            return self._exchange(call, seconds)

    def close(self) -> None:
        """Kill the worker, if there is one."""
        with self._lock:
            self._kill()

    def _exchange(self, call: Call, seconds: float) -> Result:
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = time.monotonic() + WALL_FACTOR * seconds
        try:
            payload = _encoder.encode(Order(call, seconds))
            _write(stdin.fileno(), _LENGTH.pack(len(payload)) + payload, deadline)
            (length,) = _LENGTH.unpack(_read(stdout.fileno(), _LENGTH.size, deadline))
            return _results.decode(_read(stdout.fileno(), length, deadline))
        except (TimeoutError, OSError, EOFError) as error:
            process = self._process
            if not isinstance(error, TimeoutError):
                process.wait()  # it died: its return code says of what
            in_time = process.returncode not in (None, -signal.SIGPROF)
            self._kill()
            raise TextWorkTimeout("the worker died" if in_time else f"no answer within {seconds:g} s") from error

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def check_templates(files: TokenizerFiles, model_name: str, seconds: float = CALL_SECONDS) -> None:
    """Render a small chat with each template in a worker; raises ModelError for one that misbehaves.

    A template may refuse the chat with `raise_exception`; it may not break, escape the sandbox, or run for ever.
    """
    worker = TextWorker()
    try:
        for name, source in files.templates.items():
            try:
                result = worker.call(TrialRender(source, files.special_tokens, with_tools=name == "tool_use"), seconds)
            except TextWorkTimeout as error:
                why = f"a trial render was killed: {error}"
            else:
                if result.template_error is None:
                    continue
                why = result.template_error
            what = "the chat template is broken" if name == "default" else f"the chat template {name!r} is broken"
            fix = "mend it, or give another with --chat-template"
            raise ModelError(model_name, what, files.template_file, why, fix)
    finally:
        worker.close()


def _start() -> subprocess.Popen[bytes]:
    """A worker that has imported everything and waits for its first call."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.engine.text_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    try:
        _read(process.stdout.fileno(), 1, time.monotonic() + START_SECONDS)
    except (TimeoutError, EOFError) as error:
        process.kill()
        process.wait()
        raise TextWorkTimeout("the text worker did not start") from error
    return process


def _write(fd: int, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        _wait(fd, select.POLLOUT, deadline)
        view = view[os.write(fd, view[: 1 << 16]) :]


def _read(fd: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(fd, select.POLLIN, deadline)
        chunk = os.read(fd, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _answer(call: Call, tokenizer: Any) -> Result:
    try:
        match call:
            case TrialRender():
                template = ChatTemplate(call.source, call.special_tokens)
                template.render(
                    [{"role": "user", "content": "Hello"}], tools=[_TRIAL_TOOL] if call.with_tools else None
                )
                return Result()
            case EncodeText():
                return Result(tokenizer.encode(call.text, call.add_special_tokens))
            case EncodeChat():
                ids = tokenizer.encode_chat(
                    call.messages,
                    tools=call.tools,
                    add_generation_prompt=call.add_generation_prompt,
                    continue_final_message=call.continue_final_message,
                    template_kwargs=call.template_kwargs,
                )
                return Result(ids)
            case Load():
                raise AssertionError("the main loop loads")
    except ChatTemplateRefusal as error:
        return Result(template_error=None if isinstance(call, TrialRender) else str(error))
    except ChatTemplateError as error:
        return Result(template_error=str(error))


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    tokenizer = None
    answers.write(b"!")
    answers.flush()
    while header := requests.read(_LENGTH.size):
        order = _orders.decode(requests.read(_LENGTH.unpack(header)[0]))
        call = order.call
        signal.setitimer(signal.ITIMER_PROF, order.seconds)
        if isinstance(call, Load):
            from quire.engine.tokenizer import Tokenizer

            tokenizer = Tokenizer(call.files, model_name=call.model_name)
            result = Result()
        else:
            result = _answer(call, tokenizer)
        payload = _encoder.encode(result)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(_LENGTH.pack(len(payload)) + payload)
        answers.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + WORKER_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer calls until the pipe ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    _limit_memory()
    _serve(sys.stdin.buffer, answers)


_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_results = msgspec.msgpack.Decoder(Result)

if __name__ == "__main__":
    main()
