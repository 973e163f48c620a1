"""Clients: what they were promised, what they have read, and how it ended (I9, I15, I17 as they see them)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import cast

from quire.engine.detokenizer import Detokenizer
from quire.engine.messages import Failure
from quire.engine.outputs import TextDelta
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizer import Tokenizer
from quire.simulator.events import Arrival
from quire.simulator.fake_runner import Oracle
from quire.simulator.plan import VOCAB_SIZE, Plan
from quire.simulator.shadow import Violation

LETTERS = "abcdefghijklmnop"
assert len(LETTERS) == VOCAB_SIZE


class _LetterStream:
    def push(self, ids: Iterable[int]) -> str:
        return "".join([LETTERS[token_id] for token_id in ids])

    def flush(self) -> str:
        return ""


class LetterTokenizer:
    """Each token is one letter."""

    eos_token_ids: Collection[int] = ()

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> _LetterStream:
        """Token ids to text."""
        return _LetterStream()

    def token_bytes(self, token_id: int) -> bytes:
        """The letter."""
        return LETTERS[token_id].encode()


TOKENIZER = cast(Tokenizer, LetterTokenizer())


def expected_answer(token_ids: Sequence[int], reason: str, params: SamplingParams) -> tuple[str, int, str]:
    """Text, number of tokens and finish reason of a whole choice, cut at its stop strings all at once."""
    ended_by_token = reason == "stop" and not params.include_stop_str_in_output
    text = "".join([LETTERS[token_id] for token_id in (token_ids[:-1] if ended_by_token else token_ids)])
    floor = max(0, params.min_tokens - 1)
    matches = [
        (start, -len(string), string)
        for string in params.stop
        for start in range(len(text))
        if text.startswith(string, start) and start + len(string) > floor
    ]
    if not matches:
        return text, len(token_ids), reason
    start, _, string = min(matches)
    end = start + len(string)
    return text[: end if params.include_stop_str_in_output else start], end, "stop"


class Client:
    """One request as its client sees it. Raises Violation when that is not what it was promised."""

    def __init__(self, request_id: str, arrival: Arrival, plan: Plan) -> None:
        self.request_id, self.arrival = request_id, arrival
        self.oracles = [
            Oracle(
                arrival.prompt,
                choice,
                arrival.params,
                vocab_size=VOCAB_SIZE,
                max_model_len=plan.max_model_len,
                salt=arrival.salt,
                groups=plan.groups,
            )
            for choice in range(arrival.params.n)
        ]
        self.outcome: str | None = None
        """answered, failed or left."""
        self.unread_since: float | None = None
        self._waiting: dict[int, TextDelta] = {}
        self._texts = [""] * arrival.params.n
        self._num_tokens = [0] * arrival.params.n
        self._ended: dict[int, str] = {}
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def detokenizers(self) -> tuple[Detokenizer, ...]:
        """One a choice."""
        params, prompt = self.arrival.params, self.arrival.prompt
        return tuple([Detokenizer(TOKENIZER, params, prompt) for _ in range(params.n)])

    def deliver(self, delta: TextDelta, last: bool, now: float) -> None:
        """The HTTP side has something to read; a choice's deltas merge while nobody reads."""
        if self._closed:
            raise Violation("I9", f"{self.request_id} gets a delta after its end")
        earlier = self._waiting.get(delta.choice)
        self._waiting[delta.choice] = delta if earlier is None else earlier.merge(delta)
        if self.unread_since is None:
            self.unread_since = now
        if last:
            self._closed = True

    def fail(self, failure: Failure) -> None:
        """The HTTP side ends the stream with an error."""
        if self._closed:
            raise Violation("I9", f"{self.request_id} fails ({failure.code}) after its end")
        self.read()
        self._closed, self.outcome = True, "failed"

    def leave(self) -> None:
        """The client has gone, unless it had its answer."""
        self._closed = True
        self.outcome = self.outcome or "left"

    def read(self) -> None:
        """Take in what waits."""
        self.unread_since = None
        for delta in self._waiting.values():
            self._fold(delta)
        self._waiting.clear()
        if self._closed and self.outcome is None:
            if len(self._ended) != self.arrival.params.n:
                raise Violation("I15", f"{self.request_id} is closed, but only {sorted(self._ended)} have ended")
            self.outcome = "answered"

    def _fold(self, delta: TextDelta) -> None:
        """I17: deltas add up to the text of the tokens, and the usage to their number."""
        choice, who = delta.choice, f"{self.request_id}/{delta.choice}"
        if choice in self._ended:
            raise Violation("I9", f"{who} gets a delta after its finish reason {self._ended[choice]}")
        oracle = self.oracles[choice]
        for index, token_id in enumerate(delta.token_ids, self._num_tokens[choice]):
            if oracle.token(index) != token_id:
                raise Violation("I16", f"{who} reads token {token_id} at {index}, expected {oracle.token(index)}")
        self._num_tokens[choice] += len(delta.token_ids)
        self._texts[choice] += delta.text
        if delta.num_output_tokens != self._num_tokens[choice]:
            raise Violation("I17", f"{who} has read {self._num_tokens[choice]} tokens, told {delta.num_output_tokens}")
        if delta.logprobs is not None and [entry.token_id for entry in delta.logprobs] != [*delta.token_ids]:
            raise Violation("I17", f"{who}: the log probabilities are of other tokens")
        if delta.timings is not None:
            self._check_ledger(delta)
        if delta.finish_reason is not None:
            self._ended[choice] = delta.finish_reason
            self._check_end(choice, delta.finish_reason, who)

    def _check_ledger(self, delta: TextDelta) -> None:
        timings = delta.timings
        assert timings is not None
        parts = (timings.queue, timings.prefill, timings.others_prefill, timings.decode, timings.preempted)
        whole = round(timings.ended * 1e9) - round(timings.began * 1e9)
        if sum(parts) + timings.sampling != whole:
            raise Violation("I17", f"{self.request_id}: the ledger adds up to {sum(parts)} of {whole} ns")

    def _check_end(self, choice: int, reason: str, who: str) -> None:
        tokens, end = self.oracles[choice].whole()
        text, count, expected = expected_answer(tokens, end, self.arrival.params)
        found = self._texts[choice], self._num_tokens[choice], reason
        if reason in ("stop", "length"):
            if found != (text, count, expected):
                raise Violation("I17", f"{who} ends with {found}, expected {(text, count, expected)}")
        elif reason not in ("aborted", "timeout", "error"):
            raise Violation("I9", f"{who} ends with {reason}")
        elif not text.startswith(self._texts[choice]) and not self._cut_off(choice, text):
            raise Violation("I17", f"{who} ends with {found}, which does not begin {text!r}")

    def _cut_off(self, choice: int, text: str) -> bool:
        """An answer ended from outside shows the beginning of a stop string that was held back."""
        shown = self._texts[choice]
        strings = self.arrival.params.stop
        return shown.startswith(text) and any(string.startswith(shown[len(text) :]) for string in strings)
