"""Token ids of one choice to text deltas: whole characters, stop strings, log probabilities. Torch-free.

One `Detokenizer` per choice. What it returns does not depend on how the engine's rows were cut or merged: the sum of
the deltas is the same. A delta's tokens never run ahead of a possible stop string, so that a match cuts tokens that
nobody has seen yet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence

from quire.engine.messages import CacheReport, FinishReason, OutputRow, TokenLogprobs, unpack_ids
from quire.engine.outputs import TextDelta, TokenText
from quire.engine.sampling_params import SamplingParams
from quire.engine.stop_strings import Match, StopStrings
from quire.engine.tokenizer import Tokenizer


class Detokenizer:
    """The text of one choice so far.

    `eos_token_ids` (default: the tokenizer's) are the ids among `params.stop_token_ids` that are the model's own ends:
    they give no `stop_reason`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Collection[int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._params = params
        self._prompt_token_ids = prompt_token_ids
        self._eos_token_ids = tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
        self._text = tokenizer.stream(
            skip_special_tokens=params.skip_special_tokens, continues=len(prompt_token_ids) > 0
        )
        self._stop = StopStrings(params.stop) if params.stop else None
        self._ends: list[int] = []
        """With stop strings: characters of text after each token."""
        self._num_characters = 0
        self._num_shown = 0
        self._token_ids: list[int] = []
        """Tokens that are not delivered yet, and their log probabilities."""
        self._logprobs: list[TokenLogprobs] = []
        self._num_delivered = 0
        self._prompt_logprobs: tuple[TokenText | None, ...] | None = None
        self._num_cached_tokens = 0
        self._queue_seconds = 0.0
        self._cache_report: CacheReport | None = None
        self.finished = False
        """Whether the last delta is out; later rows are dropped."""

    def push(self, row: OutputRow) -> TextDelta | None:
        """What the row adds; None when nothing of it can be shown yet, or the choice has ended before."""
        if self.finished:
            return None
        ids = unpack_ids(row.token_ids)
        self._take_facts(row, ids)
        final = row.finish_reason is not None
        stop_token = self._stop_token(ids, row.finish_reason)
        shown_ids = ids if stop_token is None or self._params.include_stop_str_in_output else ids[:-1]
        if self._stop is None:
            text = self._text.push(shown_ids) + (self._text.flush() if final else "")
            return self._delta(row, text, len(self._token_ids), row.finish_reason, self._stop_reason(stop_token))
        text = self._decode_with_ends(shown_ids, len(ids), final)
        text, match = self._stop.push(text, floor=self._floor(), final=final)
        self._num_shown += len(text)
        if match is not None:
            return self._matched(row, text, match)
        ready = len(self._ends) if final else bisect_right(self._ends, self._num_shown)
        count = ready - self._num_delivered
        return self._delta(row, text, count, row.finish_reason, self._stop_reason(stop_token))

    def _take_facts(self, row: OutputRow, ids: list[int]) -> None:
        self._token_ids += ids
        if row.logprobs is not None:
            self._logprobs += row.logprobs
        if row.prompt_logprobs is not None:
            self._prompt_logprobs = self._prompt_texts(row.prompt_logprobs)
        self._num_cached_tokens = max(self._num_cached_tokens, row.num_cached_tokens)
        self._queue_seconds = max(self._queue_seconds, row.queue_seconds)
        self._cache_report = row.cache_report or self._cache_report

    def _stop_token(self, ids: list[int], finish_reason: FinishReason | None) -> int | None:
        """The token that ended the sequence, when a token did."""
        ended = finish_reason == "stop" and ids and (ids[-1] in self._params.stop_token_ids or self._is_eos(ids[-1]))
        return ids[-1] if ended else None

    def _stop_reason(self, stop_token: int | None) -> int | None:
        return None if stop_token is None or self._is_eos(stop_token) else stop_token

    def _is_eos(self, token_id: int) -> bool:
        return token_id in self._eos_token_ids

    def _decode_with_ends(self, shown_ids: list[int], num_ids: int, final: bool) -> str:
        pieces: list[str] = []
        for token_id in shown_ids:
            piece = self._text.push((token_id,))
            pieces.append(piece)
            self._num_characters += len(piece)
            self._ends.append(self._num_characters)
        self._ends += [self._num_characters] * (num_ids - len(shown_ids))
        if final:
            tail = self._text.flush()
            pieces.append(tail)
            self._num_characters += len(tail)
        return "".join(pieces)

    def _floor(self) -> int:
        """Characters within which no stop string counts: those of the first min_tokens - 1 tokens."""
        last = self._params.min_tokens - 2
        if last < 0:
            return 0
        return self._ends[last] if last < len(self._ends) else self._num_characters

    def _matched(self, row: OutputRow, text: str, match: Match) -> TextDelta | None:
        """The last delta: text up to the match, tokens up to the one that completed it."""
        if self._params.include_stop_str_in_output:
            text += match.string
        num_tokens = min(bisect_left(self._ends, match.end) + 1, len(self._ends))
        return self._delta(row, text, num_tokens - self._num_delivered, "stop", match.string)

    def _delta(
        self, row: OutputRow, text: str, count: int, finish_reason: FinishReason | None, stop_reason: str | int | None
    ) -> TextDelta | None:
        """A delta with the next `count` tokens; None when it would say nothing."""
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        if not (text or count or finish_reason or prompt_logprobs):
            return None
        cache_report, self._cache_report = self._cache_report, None
        ids, self._token_ids = tuple(self._token_ids[:count]), self._token_ids[count:]
        self._num_delivered += count
        logprobs = None
        if self._params.logprobs is not None:
            logprobs = tuple(self._token_text(entry) for entry in self._logprobs[:count])
            del self._logprobs[:count]
        self.finished = finish_reason is not None
        return TextDelta(
            choice=row.choice,
            text=text,
            token_ids=ids,
            num_output_tokens=self._num_delivered,
            num_cached_tokens=self._num_cached_tokens,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            failure=row.failure if finish_reason == "error" else None,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            queue_seconds=self._queue_seconds,
            timings=row.timings if self.finished else None,
            cache_report=cache_report,
        )

    def _token_text(self, entry: TokenLogprobs) -> TokenText:
        top = tuple(
            self._one_token(token_id, logprob, rank)
            for rank, (token_id, logprob) in enumerate(zip(entry.top_token_ids, entry.top_logprobs, strict=True), 1)
        )
        return self._one_token(entry.token_id, entry.logprob, entry.rank, top)

    def _one_token(
        self, token_id: int, logprob: float | None, rank: int | None, top: tuple[TokenText, ...] = ()
    ) -> TokenText:
        data = self._tokenizer.token_bytes(token_id)
        return TokenText(token_id, data.decode("utf-8", "replace"), data, logprob, rank, top)

    def _prompt_texts(self, entries: Sequence[TokenLogprobs | None]) -> tuple[TokenText | None, ...]:
        return tuple(
            self._one_token(token_id, None, None) if entry is None else self._token_text(entry)
            for token_id, entry in zip(self._prompt_token_ids, entries, strict=False)
        )
