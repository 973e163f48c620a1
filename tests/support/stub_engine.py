"""An engine and a tokenizer for tests of the HTTP side: no process, no model, answers that a test writes down.

`StubTokenizer` has one token per byte (id = byte), and three special ones from 256 on. `StubEngine` answers each
request with a script of deltas; by default it echoes the prompt's end, at most `max_tokens` bytes, one token a delta.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from quire.engine.chat_template import ChatTemplateError
from quire.engine.messages import Answer, Ready, Statistics
from quire.engine.outputs import GenerateRequest, TextDelta, TokenText

CONTEXT = 256
VOCAB = 259
SPECIAL = {256: "<|im_start|>", 257: "<|im_end|>", 258: "<|tool|>"}


def ready(**changes: Any) -> Ready:
    """Facts of a tiny engine."""
    facts = Ready(
        max_model_len=CONTEXT,
        vocab_size=VOCAB,
        num_blocks=64,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        weights_bytes=1 << 20,
        kv_cache_bytes=1 << 20,
        dtype="float32",
        cache_dtype="float32",
        device="cpu",
        kernels="cpu (test)",
        seconds={},
    )
    return msgspec.structs.replace(facts, **changes)


class StubTokenizer:
    """Bytes are tokens."""

    vocab_size = VOCAB
    max_token_bytes = len(SPECIAL[256])
    has_chat_template = True
    eos_token_ids = frozenset({257})

    def __init__(self) -> None:
        self.chats: list[dict[str, Any]] = []
        """What templates were asked to render."""
        self.num_encoded = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.num_encoded += 1
        return list(text.encode())

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        data = b""
        for token_id in ids:
            data += self.token_bytes(token_id) if token_id < 256 or not skip_special_tokens else b""
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else SPECIAL[token_id].encode()

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.chats.append(
            {
                "messages": messages,
                "tools": tools,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
                "kwargs": template_kwargs,
            }
        )
        if any("refuse me" in message["content"] for message in messages):
            raise ChatTemplateError("Conversation roles must alternate")
        text = "".join(f"{message['role'][0]}:{message['content']}\n" for message in messages)
        return self.encode(text) + ([256] if add_generation_prompt else [])


Script = Callable[[GenerateRequest], Iterable[TextDelta]]


def token_text(token_id: int, rank: int = 1, top: int = 0, logprob: float | None = -0.5) -> TokenText:
    """A token with `top` alternatives, each less likely than the one before."""
    data = bytes([token_id]) if token_id < 256 else SPECIAL[token_id].encode()
    alternatives = tuple(token_text((token_id + i) % 128, i + 1, 0, -0.5 - i) for i in range(top))
    return TokenText(token_id, data.decode("utf-8", "replace"), data, logprob, rank, alternatives)


def words(request: GenerateRequest, pieces: Sequence[str], *, finish: str = "stop") -> list[TextDelta]:
    """Deltas of every choice that spell `pieces`, one a delta, each byte a token."""
    deltas = []
    params = request.params
    for choice in range(params.n):
        count = 0
        for number, piece in enumerate(pieces):
            ids = tuple(piece.encode())
            count += len(ids)
            last = number == len(pieces) - 1
            logprobs = None
            if params.logprobs is not None:
                logprobs = tuple(token_text(token_id, 1, params.logprobs) for token_id in ids)
            prompt_logprobs = None
            if params.prompt_logprobs is not None and choice == 0 and number == 0:
                rest = [token_text(token_id, 1, params.prompt_logprobs) for token_id in request.prompt_token_ids[1:]]
                first = token_text(request.prompt_token_ids[0], 1, 0, None)
                prompt_logprobs = (first, *rest)
            deltas.append(
                TextDelta(
                    choice=choice,
                    text=piece,
                    token_ids=ids,
                    num_output_tokens=count,
                    num_cached_tokens=3 if choice == 0 and number == 0 else 0,
                    finish_reason=finish if last else None,  # type: ignore[arg-type]
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                    queue_seconds=0.001,
                )
            )
    return sorted(deltas, key=lambda delta: delta.num_output_tokens)


def echo_script(request: GenerateRequest) -> list[TextDelta]:
    """The prompt's own end, one character a delta, up to max_tokens."""
    text = bytes(token_id for token_id in request.prompt_token_ids if token_id < 128).decode()
    text = text[-min(request.params.max_tokens, 8) :] or "x"
    return words(request, list(text), finish="length")


class StubEngine:
    """Has the methods of AsyncEngine that the routes use."""

    def __init__(self, script: Script = echo_script) -> None:
        self.script = script
        self.state = "ready"
        self.facts: Ready | None = ready()
        self.statistics = Statistics(num_blocks=64)
        self.recording = b""
        """What a flight query is answered with."""
        self.hang_limit, self.still = 30.0, 0.0
        self.restarts = self.hangs = self.quarantines = 0
        self.requests: list[GenerateRequest] = []
        """Every request that reached the engine."""
        self.cancelled = 0
        self.active = 0
        self.gate: asyncio.Event | None = None
        """When set, deltas after the first wait for it."""
        self.entered = asyncio.Event()
        """Set when a request has begun."""

    async def query(self, kind: Literal["statistics", "check", "flight"]) -> Answer:
        return Answer(1, self.statistics, recording=self.recording)

    def standstill(self) -> float:
        return self.still

    def registered(self) -> int:
        return self.active

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TextDelta, None]:
        self.requests.append(request)
        self.active += 1
        self.entered.set()
        complete = False
        try:
            for number, delta in enumerate(self.script(request)):
                if self.gate is not None and number:
                    await self.gate.wait()
                await asyncio.sleep(0)
                yield delta
            complete = True
        finally:
            self.active -= 1
            self.cancelled += not complete
