"""The answer of /v1/chat/completions: deltas to chunks, and chunks to the whole answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET

from quire.engine.outputs import TextDelta, TokenText
from quire.engine.tool_calls import HermesParser, ToolCallDelta
from quire.server.accounting import Accounting, prompt_logprobs_answer
from quire.server.answers import (
    CallDelta,
    CallFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatToken,
    ToolCall,
    TopToken,
)
from quire.server.chat_request import ChatRequest

T = TypeVar("T")


class ChatAnswer:
    """One call's answer. Deltas go in, chunks come out; nothing is kept of the text."""

    def __init__(self, answer_id: str, fingerprint: str, request: ChatRequest, prompt_token_ids: list[int]) -> None:
        self.id, self._fingerprint, self._request = answer_id, fingerprint, request
        self._created = int(time.time())
        self._prompt_token_ids = prompt_token_ids
        self.accounting = Accounting(len(prompt_token_ids))
        self._choices: dict[int, _ChoiceState] = {}
        self._first = True

    def push(self, prompt: int, delta: TextDelta) -> list[ChatChunk]:
        """The chunks of one delta: the role before the first, the finish reason in one of its own after the last."""
        self.accounting.count(prompt, delta)
        choice = self._choices.get(delta.choice)
        chunks: list[ChatChunk] = []
        if choice is None:
            choice = self._choices[delta.choice] = _ChoiceState(self._request)
            chunks.append(self._chunk(delta.choice, ChatDelta(role="assistant", content="")))
        chunks += self._content_chunks(choice, delta)
        if delta.finish_reason is not None:
            chunks.append(self._finish_chunk(choice, delta))
        self._add_prompt_facts(chunks, delta)
        if self._request.options.continuous_usage:
            usage = self.accounting.usage()
            for chunk in chunks:
                chunk.usage = usage
        return chunks

    def closing(self) -> list[ChatChunk]:
        """The usage chunk, when asked for."""
        if not self._request.options.include_usage:
            return []
        chunk = self._chunk(0, ChatDelta())
        chunk.choices = []
        chunk.usage = self.accounting.usage()
        return [chunk]

    def fold(self, chunks: Sequence[msgspec.Struct]) -> ChatCompletion:
        """All chunks of this answer as one."""
        whole = ChatCompletion(
            id=self.id,
            created=self._created,
            model=self._request.options.model,
            system_fingerprint=self._fingerprint,
            choices=[],
            usage=self.accounting.usage(),
        )
        folds: dict[int, _ChoiceFold] = {}
        for chunk in chunks:
            assert isinstance(chunk, ChatChunk)
            whole.prompt_token_ids = _either(whole.prompt_token_ids, chunk.prompt_token_ids)
            whole.prompt_logprobs = _either(whole.prompt_logprobs, chunk.prompt_logprobs)
            whole.quire = _either(whole.quire, chunk.quire)
            for choice in chunk.choices:
                folds.setdefault(choice.index, _ChoiceFold(choice.index)).add(choice)
        whole.choices = [folds[index].whole() for index in sorted(folds)]
        return whole

    def _chunk(self, index: int, delta: ChatDelta) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self._created,
            model=self._request.options.model,
            system_fingerprint=self._fingerprint,
            choices=[ChatChunkChoice(index=index, delta=delta)],
        )

    def _content_chunks(self, choice: _ChoiceState, delta: TextDelta) -> list[ChatChunk]:
        chunks = [self._chunk(delta.choice, part) for part in choice.split(delta)]
        carries = delta.logprobs or (self._request.options.return_token_ids and delta.token_ids)
        if carries and not chunks:
            chunks.append(self._chunk(delta.choice, ChatDelta(content="")))
        if chunks:
            first = chunks[0].choices[0]
            if delta.logprobs:
                first.logprobs = ChatLogprobs([_chat_token(token) for token in delta.logprobs])
            if self._request.options.return_token_ids:
                first.token_ids = list(delta.token_ids)
        return chunks

    def _finish_chunk(self, choice: _ChoiceState, delta: TextDelta) -> ChatChunk:
        chunk = self._chunk(delta.choice, ChatDelta())
        calls_tools = choice.called and delta.finish_reason == "stop"
        chunk.choices[0].finish_reason = "tool_calls" if calls_tools else delta.finish_reason
        if delta.stop_reason is not None:
            chunk.choices[0].stop_reason = delta.stop_reason
        return chunk

    def _add_prompt_facts(self, chunks: list[ChatChunk], delta: TextDelta) -> None:
        if not chunks:
            return
        if self._first and self._request.options.return_token_ids:
            chunks[0].prompt_token_ids = self._prompt_token_ids
        if delta.prompt_logprobs is not None:
            chunks[0].prompt_logprobs = prompt_logprobs_answer(delta.prompt_logprobs)
        self._first = False


class _ChoiceState:
    """What a choice must remember between deltas: its tool-call parser, and whether a call was found."""

    def __init__(self, request: ChatRequest) -> None:
        self._parser = HermesParser() if request.tools.enabled else None
        self._parallel = request.tools.parallel
        self.called = False

    def split(self, delta: TextDelta) -> list[ChatDelta]:
        """The delta's text as content and parts of tool calls."""
        if self._parser is None:
            return [ChatDelta(content=delta.text)] if delta.text else []
        parts = list(self._parser.push(delta.text))
        if delta.finish_reason is not None:
            parts += self._parser.finish()
        answer: list[ChatDelta] = []
        for part in parts:
            if not isinstance(part, ToolCallDelta):
                answer.append(ChatDelta(content=part.text))
            elif part.index == 0 or self._parallel:
                self.called = True
                answer.append(ChatDelta(tool_calls=[_call_delta(part)]))
        return answer


class _ChoiceFold:
    """Adds up the chunks of one choice."""

    def __init__(self, index: int) -> None:
        self._choice = ChatChoice(index=index, message=ChatMessage(content=None))
        self._texts: list[str] = []
        self._calls: dict[int, ToolCall] = {}

    def add(self, chunk: ChatChunkChoice) -> None:
        """Take one chunk's part of this choice."""
        choice = self._choice
        if chunk.delta.content is not UNSET:
            self._texts.append(chunk.delta.content)
        for call in chunk.delta.tool_calls or ():
            self._add_call(call)
        if chunk.logprobs is not UNSET:
            if choice.logprobs is None:
                choice.logprobs = ChatLogprobs([])
            choice.logprobs.content += chunk.logprobs.content
        if chunk.token_ids is not UNSET:
            if choice.token_ids is UNSET:
                choice.token_ids = []
            choice.token_ids += chunk.token_ids
        choice.finish_reason = chunk.finish_reason or choice.finish_reason
        choice.stop_reason = _either(choice.stop_reason, chunk.stop_reason)

    def whole(self) -> ChatChoice:
        """The choice as the JSON answer shows it."""
        text = "".join(self._texts)
        self._choice.message.content = None if self._calls and not text else text
        if self._calls:
            self._choice.message.tool_calls = [self._calls[index] for index in sorted(self._calls)]
        return self._choice

    def _add_call(self, part: CallDelta) -> None:
        call = self._calls.get(part.index)
        if call is None:
            call = self._calls[part.index] = ToolCall(id="", function=CallFunction(name="", arguments=""))
        call.id += part.id or ""
        call.function.name = (call.function.name or "") + (part.function.name or "")
        call.function.arguments = (call.function.arguments or "") + (part.function.arguments or "")


def _either(first: T, second: T) -> T:
    return second if first is UNSET else first


def _call_delta(part: ToolCallDelta) -> CallDelta:
    call = CallDelta(index=part.index, function=CallFunction())
    if part.id is not None:
        call.id, call.type = part.id, "function"
    if part.name is not None:
        call.function.name = part.name
    if part.arguments:
        call.function.arguments = part.arguments
    return call


def _chat_token(token: TokenText) -> ChatToken:
    top = [TopToken(entry.text, entry.logprob or 0.0, list(entry.bytes)) for entry in token.top]
    return ChatToken(token.text, token.logprob or 0.0, list(token.bytes), top)
