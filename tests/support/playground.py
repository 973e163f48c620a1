"""The page as a browser gets it: the real HTTP side on a port of its own, over a fake engine that tests step."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import uvicorn
from support.fake_engine import FakeEngine
from support.tokenizers import starter_tokenizer

from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.messages import Add, ToEngine, unpack_ids
from quire.server.app import create_app
from quire.server.settings import ServerSettings

T = TypeVar("T")

ANSWERS: dict[str, str] = {}
"""The answer to a question that holds a word; others are answered by `DEFAULT`."""
DEFAULT = "One two three four five six seven eight nine ten."


def question_of(add: Add) -> str:
    """The last thing the user said, from the prompt's tokens."""
    text = starter_tokenizer().decode(unpack_ids(add.prompt_token_ids), skip_special_tokens=False)
    return text.split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]


def scripted(add: Add, choice: int) -> Iterable[int]:
    """The tokens of the answer that `ANSWERS` has, and the end; "endless" goes on and on."""
    tokenizer, question = starter_tokenizer(), question_of(add)
    if "endless" in question:
        return tokenizer.encode("on and ", add_special_tokens=False) * 400
    text = next((answer for word, answer in ANSWERS.items() if word in question), DEFAULT)
    assert tokenizer.eos_token_id is not None
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


class ServedPlayground:
    """Serves in a thread from `with` to its end. The engine is only touched on the loop of that thread."""

    def __init__(self, **settings: object) -> None:
        self._settings = ServerSettings.model_validate({"served_model_name": ["starter"], **settings})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.loop: asyncio.AbstractEventLoop
        self.engine: FakeEngine
        self._web: uvicorn.Server

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.engine = FakeEngine(scripted)
        config = EngineConfig(model="none", model_name="starter")
        engine = AsyncEngine(config, starter_tokenizer(), launch=self.engine.launch, hang_limit=600)
        await engine.start()
        app = create_app(self._settings, engine, starter_tokenizer())
        web = uvicorn.Config(
            app, interface="asgi3", ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        self._web = uvicorn.Server(web)
        self._ready.set()
        try:
            await self._web.serve(sockets=[self._listener])
        finally:
            await engine.stop()
            app.state.service.text.close()

    def ask(self, question: Callable[[], T]) -> T:
        """What `question()` gives on the loop's own thread."""

        async def answer() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(60)

    def hold(self) -> None:
        """No steps until `release` or `step`."""
        self.ask(self.engine.hold)

    def release(self) -> None:
        """Steps follow each other again."""
        self.ask(self.engine.release)

    def step(self, count: int = 1) -> None:
        """So many tokens for each running sequence."""
        for _ in range(count):
            self.ask(self.engine.step)

    def received(self, kind: type[ToEngine]) -> list[ToEngine]:
        """The messages of one type that reached the engine, in order."""
        return self.ask(lambda: self.engine.messages(kind))

    def __enter__(self) -> ServedPlayground:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
        self._web.should_exit = True
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()


def ask(page: Any, text: str) -> None:
    """Type and send."""
    page.fill("#composer-text", text)
    page.press("#composer-text", "Enter")


def answered(page: Any, count: int = 1) -> None:
    """Until so many answers are whole."""
    page.wait_for_selector(f".answer[aria-busy=false] >> nth={count - 1}")
    page.wait_for_selector("#stop", state="hidden")
