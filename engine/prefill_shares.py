"""How the tokens that decodes leave of a step's budget are shared among prompts.

A long prompt takes at most half of what is left while others wait behind it, so that a short one begins in the same
step; what nobody else wants, it gets in the end. With a target for the time between tokens the whole share is bounded
by what the target leaves, as long as somebody generates (`quire.engine.step_cost`).
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from quire.engine.flight import Draft, Flight
from quire.engine.sequence import Sequence
from quire.engine.step_cost import StepCost


class PrefillShares:
    """`max_chunk` bounds what one prompt gets in a step; `target_itl` is in seconds."""

    def __init__(self, max_chunk: int, target_itl: float | None, token_seconds: float | None) -> None:
        self._max_chunk, self._target_itl = max_chunk, target_itl
        self._cost = StepCost(token_seconds)

    def bound(self, draft: Draft) -> None:
        """The decodes have their tokens: leave prompts what the target has time for."""
        num_decodes = len(draft.chunks)
        if self._target_itl is not None and num_decodes:
            draft.budget = min(draft.budget, self._cost.num_prefill_tokens(num_decodes, self._target_itl))

    def go_on(self, draft: Draft, partial: Items[Sequence], num_waiting: int) -> None:
        """Give each prompt under way its chunk, in this order; `num_waiting` sequences stand behind them."""
        for index, sequence in enumerate(partial):
            if draft.budget == 0:
                return
            others_wait = index + 1 < len(partial) or num_waiting > 0
            draft.give(sequence, self.chunk(draft, sequence.num_missing_tokens, others_wait))

    def chunk(self, draft: Draft, num_missing_tokens: int, others_wait: bool) -> int:
        """Tokens for a prompt that lacks so many."""
        share = (draft.budget + 1) // 2 if others_wait else draft.budget
        return min(num_missing_tokens, share, self._max_chunk)

    def spend_rest(self, draft: Draft) -> None:
        """Budget that nobody else wanted goes to the prompts that could take more."""
        if draft.budget == 0 or not draft.partial:
            return
        for sequence, given in draft.chunks.items():
            more = min(draft.budget, sequence.num_missing_tokens - given, self._max_chunk - given)
            if more > 0:
                draft.chunks[sequence] = given + more
                draft.budget -= more

    def observe(self, flight: Flight, seconds: float) -> None:
        """The step took so long."""
        chunks = [end - start for _, start, end in flight.works]
        num_decodes = chunks.count(1)
        self._cost.observe(num_decodes, sum(chunks) - num_decodes, seconds)

    def prompt_seconds(self, num_tokens: int) -> float:
        """The least that computing so many prompt tokens takes; 0 while nothing is known."""
        return self._cost.prompt_seconds(num_tokens)
