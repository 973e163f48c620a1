"""Counts of one call, for its `usage`; and prompt log probabilities in the shape of the API."""

from __future__ import annotations

from collections.abc import Sequence

from quire.engine.outputs import TextDelta, TokenText
from quire.server.answers import CachedTokens, PromptLogprobs, PromptToken, Usage


class Accounting:
    """Counts tokens of one call while its deltas pass."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self._outputs: dict[tuple[int, int], int] = {}
        self._cached: dict[int, int] = {}

    def count(self, prompt: int, delta: TextDelta) -> None:
        """Take one delta of one prompt into account."""
        self._outputs[prompt, delta.choice] = delta.num_output_tokens
        if delta.num_cached_tokens:
            self._cached[prompt] = max(self._cached.get(prompt, 0), delta.num_cached_tokens)

    def usage(self) -> Usage:
        """The counts so far."""
        output = sum(self._outputs.values())
        cached = CachedTokens(min(sum(self._cached.values()), self.num_prompt_tokens))
        return Usage(self.num_prompt_tokens, output, self.num_prompt_tokens + output, cached)


def prompt_logprobs_answer(entries: Sequence[TokenText | None]) -> PromptLogprobs:
    """Per prompt position null (the first), or every alternative by its token id, the prompt's own among them."""
    answer: PromptLogprobs = []
    for entry in entries:
        if entry is None or entry.logprob is None:
            answer.append(None)
            continue
        answer.append(
            {
                str(token.token_id): PromptToken(token.logprob, token.rank, token.text)
                for token in (entry, *(top for top in entry.top if top.token_id != entry.token_id))
            }
        )
    return answer
