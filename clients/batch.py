"""`quire batch -i IN -o OUT`: sends the requests of a file, and writes one line for each as it is answered.

Lines are OpenAI's batch lines. A line that cannot be sent, or is refused, gets its line too; the others go on. The
server is the one at --base-url, or one of our own where none runs. Exit code 1 when any line failed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

from quire.clients import protocol
from quire.clients.batch_lines import Request, Result, answered, failed, read_requests
from quire.clients.batch_output import Output
from quire.clients.errors import ClientError, ConnectionFailed, StatusError, TimedOut
from quire.clients.servers import Server, ended_by_signals, running_or_own
from quire.clients.terminal import USAGE, CommandFailed, Parser, add_server_flags
from quire.clients.transport import async_transport, request, settings, transport_failure

ANSWER_SECONDS = 3600.0
"""A batch is patient: how long one answer may take."""
_RETRIES_WHEN_FULL = 20
_RETRIES = 2


def main(command: str, arguments: list[str]) -> int:
    """Run `quire batch`; returns the exit code."""
    options = _parser().parse(arguments)
    if options.max_concurrency < 1:
        raise CommandFailed(f"--max-concurrency: expected 1 or more, found {options.max_concurrency}", USAGE)
    requests = _read_input(options.input)
    output = Output(options.output, requests, resume=options.resume, keep_order=options.keep_order)
    with ended_by_signals(), output:
        todo = [request for request in requests if not output.earlier.has(request)]
        try:
            if todo:
                named = _only_model(todo)
                model = options.model or (named if all(line.model or line.fault for line in todo) else None)
                with running_or_own(options.base_url, options.api_key, model, serve=named) as server:
                    _send(server, todo, output, options.max_concurrency)
        except KeyboardInterrupt:
            print(f"stopped: {output.state()}", file=sys.stderr)
            raise
        except ConnectionFailed as error:
            raise CommandFailed(f"{error}; {output.state()}") from None
    good = len(requests) - output.failures
    print(f"{len(requests)} lines: {good} answered, {output.failures} failed", file=sys.stderr)
    return 1 if output.failures else 0


class Sender:
    """Sends requests to one server, some at a time, and hands each result on when it is there."""

    def __init__(
        self,
        server: Server,
        model: str,
        concurrency: int,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.server, self.model, self.concurrency = server, model, concurrency
        self._transport, self._sleep = transport, sleep

    async def send(self, requests: list[Request], done: Callable[[int, Result], None]) -> None:
        """Every request, once; `done` hears its position and its result. Raises ConnectionFailed when the server is
        gone, which is no request's fault."""
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        options = settings(self.server.url, self.server.api_key, ANSWER_SECONDS)
        transport = self._transport or async_transport(self.server.url, limits)
        async with httpx.AsyncClient(**options, limits=limits, transport=transport) as http:
            numbered = enumerate(requests)
            workers = [
                asyncio.create_task(self._work(http, numbered, done))
                for _ in range(min(self.concurrency, len(requests)))
            ]
            try:
                ended, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in ended:
                    worker.result()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(
        self, http: httpx.AsyncClient, requests: Iterator[tuple[int, Request]], done: Callable[[int, Result], None]
    ) -> None:
        for position, line in requests:
            done(position, await self._answer(http, line))

    async def _answer(self, http: httpx.AsyncClient, line: Request) -> Result:
        if line.fault is not None:
            return failed(line, "invalid_line", f"line {line.number}: {line.fault}")
        body = line.body_for(self.model)
        call = protocol.Call("POST", line.url, _any_json, body, {"Content-Type": "application/json"})
        for attempt in itertools.count():
            response, failure = await self._try(http, call)
            if response is not None and failure is None:
                return _result(line, response)
            assert failure is not None
            delay = protocol.retry_delay(failure, attempt, await self._patience(http, failure), random.random())
            if delay is not None:
                await self._sleep(delay)
            elif response is not None:
                return _result(line, response)
            elif isinstance(failure, TimedOut):
                return failed(line, "timed_out", str(failure))
            elif await self._alive(http):
                return failed(line, "connection_failed", str(failure))
            else:
                raise failure
        raise AssertionError("unreachable")

    async def _try(
        self, http: httpx.AsyncClient, call: protocol.Call[Any]
    ) -> tuple[httpx.Response | None, ClientError | None]:
        try:
            response = await http.send(request(http, call))
        except httpx.HTTPError as error:
            return None, transport_failure(error, self.server.url)
        if response.status_code < 400:
            return response, None
        return response, protocol.refusal(response.status_code, response.headers, response.content)

    async def _patience(self, http: httpx.AsyncClient, failure: ClientError) -> int:
        """How often to try again: a server that is full, loading or away is waited for; what broke may break again."""
        if isinstance(failure, StatusError):
            return _RETRIES_WHEN_FULL if failure.status in (429, 503) else _RETRIES
        return _RETRIES if await self._alive(http) else _RETRIES_WHEN_FULL

    async def _alive(self, http: httpx.AsyncClient) -> bool:
        """Whether the server answers anything at all."""
        response, _ = await self._try(http, protocol.version())
        return response is not None


def _result(line: Request, response: httpx.Response) -> Result:
    try:
        body = _any_json(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return failed(line, "invalid_response", f"status {response.status_code}, and no JSON: {error}")
    return answered(line, response.status_code, response.headers.get("x-request-id"), body)


def _any_json(body: bytes) -> Any:
    return msgspec.json.decode(body)


def _send(server: Server, requests: list[Request], output: Output, concurrency: int) -> None:
    with server.client() as client:
        model = client.model or ""
    with _progress(len(requests), output) as advance:

        def done(position: int, result: Result) -> None:
            output.write(position, result)
            advance()

        asyncio.run(Sender(server, model, concurrency).send(requests, done))


@contextmanager
def _progress(total: int, output: Output) -> Iterator[Callable[[], None]]:
    """A bar on stderr when that is a terminal, and the results are not on it; called once a result."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not (output.name == "-" and sys.stdout.isatty())
    with tqdm(total=total, unit="line", file=sys.stderr, disable=not shown, leave=False, dynamic_ncols=True) as bar:

        def advance() -> None:
            if output.failures:
                bar.set_postfix(failed=output.failures, refresh=False)
            bar.update()

        yield advance


def _read_input(name: str) -> list[Request]:
    if name == "-":
        return read_requests("stdin", sys.stdin.buffer)
    try:
        with open(name, "rb") as file:
            return read_requests(name, file)
    except OSError as error:
        raise CommandFailed(f"{name}: {error.strerror}", USAGE) from None


def _only_model(requests: list[Request]) -> str | None:
    """The model that is named, where no line names another."""
    named = {line.model for line in requests if line.model is not None}
    return named.pop() if len(named) == 1 else None


def _parser() -> Parser:
    parser = Parser("batch", __doc__)
    parser.add_argument("-i", "--input", metavar="FILE", required=True, help="requests, one a line; - is stdin")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="results, one a line; - is stdout")
    parser.add_argument("--resume", action="store_true", help="leave out lines that have their result in the output")
    parser.add_argument("--keep-order", action="store_true", help="write results in the order of the input")
    parser.add_argument("--max-concurrency", type=int, default=16, metavar="N", help="requests at a time [16]")
    add_server_flags(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="for lines that name none, and to serve where no server runs [what lines name]"
    )
    return parser
