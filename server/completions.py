"""The answer of /v1/completions: deltas to chunks, and chunks to the whole answer."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from quire.engine.outputs import TextDelta, TokenText
from quire.server.accounting import Accounting, prompt_logprobs_answer
from quire.server.answers import Completion, CompletionChoice, CompletionLogprobs, QuireAnswer
from quire.server.completion_request import CompletionRequest


class EchoedPrompt(msgspec.Struct, frozen=True):
    """A prompt as it comes back: its text, and its token ids."""

    text: str
    token_ids: list[int]


class CompletionAnswer:
    """One call's answer. Choice j of prompt i has index i x n + j."""

    def __init__(
        self, answer_id: str, fingerprint: str, request: CompletionRequest, prompts: Sequence[EchoedPrompt]
    ) -> None:
        self.id, self._fingerprint, self._request, self._prompts = answer_id, fingerprint, request, prompts
        self._created = int(time.time())
        self._n = request.sampling.params.n
        self.accounting = Accounting(sum(len(prompt.token_ids) for prompt in prompts))
        self._choices: dict[int, _ChoiceState] = {}
        self._prompt_logprobs: dict[int, Sequence[TokenText | None]] = {}
        self._held: dict[int, list[TextDelta]] = {}

    def push(self, prompt: int, delta: TextDelta) -> list[Completion]:
        """The chunks of one delta. A choice waits for the prompt's log probabilities, which come with choice 0."""
        if not self._request.no_output:
            self.accounting.count(prompt, delta)
        wanted = self._request.sampling.params.prompt_logprobs is not None
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = delta.prompt_logprobs
        if wanted and prompt not in self._prompt_logprobs and delta.choice != 0:
            self._held.setdefault(prompt, []).append(delta)
            return []
        ready = (delta, *self._held.pop(prompt, ()))
        return [self._chunk(prompt, one) for one in ready if self._tells(prompt, one)]

    def closing(self) -> list[Completion]:
        """The usage chunk, when asked for."""
        if not self._request.options.include_usage:
            return []
        return [self._completion([], usage=True)]

    def fold(self, chunks: Sequence[msgspec.Struct]) -> Completion:
        """All chunks of this answer as one."""
        choices: dict[int, CompletionChoice] = {}
        texts: dict[int, list[str]] = {}
        explained: QuireAnswer | UnsetType = UNSET
        for chunk in chunks:
            assert isinstance(chunk, Completion)
            explained = chunk.quire if explained is UNSET else explained
            for part in chunk.choices:
                texts.setdefault(part.index, []).append(part.text)
                if part.index in choices:
                    _add(choices[part.index], part)
                else:
                    choices[part.index] = part
        for index, pieces in texts.items():
            choices[index].text = "".join(pieces)
        whole = self._completion([choices[index] for index in sorted(choices)], usage=True)
        whole.quire = explained
        return whole

    def _tells(self, prompt: int, delta: TextDelta) -> bool:
        """Whether a delta makes a chunk: a first or a last one does, and one with text or tokens to show."""
        first = prompt * self._n + delta.choice not in self._choices
        shows = delta.text or delta.logprobs or (self._request.options.return_token_ids and delta.token_ids)
        return bool(first or shows or delta.finish_reason)

    def _chunk(self, prompt: int, delta: TextDelta) -> Completion:
        index = prompt * self._n + delta.choice
        choice = CompletionChoice(index, "")
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _ChoiceState()
            self._open(prompt, choice, state)
        if self._request.no_output:
            choice.finish_reason = "length" if delta.finish_reason else None
        else:
            self._fill(choice, state, delta)
        return self._completion([choice], usage=self._request.options.continuous_usage)

    def _open(self, prompt: int, choice: CompletionChoice, state: _ChoiceState) -> None:
        """What comes once, before a choice's first token: the echo, and facts about the prompt."""
        echoed = self._prompts[prompt]
        known = self._prompt_logprobs.get(prompt)
        if self._request.echo:
            choice.text = echoed.text
            if known is not None and self._request.sampling.params.logprobs is not None:
                choice.logprobs = state.logprobs(known)
        if self._request.options.return_token_ids:
            choice.prompt_token_ids = echoed.token_ids
            choice.token_ids = []
        if known is not None and self._request.show_prompt_logprobs:
            choice.prompt_logprobs = prompt_logprobs_answer(known)

    def _fill(self, choice: CompletionChoice, state: _ChoiceState, delta: TextDelta) -> None:
        choice.text += delta.text
        if delta.logprobs is not None:
            added = state.logprobs(delta.logprobs)
            if choice.logprobs is UNSET:
                choice.logprobs = added
            else:
                _extend(choice.logprobs, added)
        if self._request.options.return_token_ids:
            choice.token_ids = (choice.token_ids or []) + list(delta.token_ids)
        choice.finish_reason = delta.finish_reason
        if delta.stop_reason is not None:
            choice.stop_reason = delta.stop_reason

    def _completion(self, choices: list[CompletionChoice], *, usage: bool) -> Completion:
        return Completion(
            id=self.id,
            created=self._created,
            model=self._request.options.model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=self.accounting.usage() if usage else UNSET,
        )


class _ChoiceState:
    """Where the next token of a choice begins, in characters of its text."""

    def __init__(self) -> None:
        self._characters = 0
        # Tokens may end inside a character: what counts are whole characters, wherever their bytes came from.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def logprobs(self, entries: Sequence[TokenText | None]) -> CompletionLogprobs:
        """The next tokens of the choice in the API's shape."""
        answer = CompletionLogprobs([], [], [], [])
        for entry in entries:
            answer.text_offset.append(self._characters)
            if entry is None:
                entry = TokenText(0, "", b"", None, None)
            self._characters += len(self._decoder.decode(entry.bytes))
            answer.tokens.append(entry.text)
            answer.token_logprobs.append(entry.logprob)
            answer.top_logprobs.append(None if entry.logprob is None else _top(entry, entry.logprob))
        return answer


def _top(entry: TokenText, logprob: float) -> dict[str, float]:
    """The most likely tokens by their text, and the chosen one; of equal texts the likelier stays."""
    top: dict[str, float] = {}
    for candidate in entry.top:
        top[candidate.text] = max(candidate.logprob or 0.0, top.get(candidate.text, float("-inf")))
    top.setdefault(entry.text, logprob)
    return top


def _extend(first: CompletionLogprobs, second: CompletionLogprobs) -> None:
    first.tokens += second.tokens
    first.token_logprobs += second.token_logprobs
    first.top_logprobs += second.top_logprobs
    first.text_offset += second.text_offset


def _add(choice: CompletionChoice, part: CompletionChoice) -> None:
    if part.logprobs is not UNSET:
        if choice.logprobs is UNSET:
            choice.logprobs = part.logprobs
        else:
            _extend(choice.logprobs, part.logprobs)
    if part.token_ids is not UNSET and choice.token_ids is not UNSET:
        choice.token_ids += part.token_ids
    choice.finish_reason = part.finish_reason or choice.finish_reason
    choice.stop_reason = part.stop_reason if choice.stop_reason is UNSET else choice.stop_reason
