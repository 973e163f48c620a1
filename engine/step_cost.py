"""What a step costs, learned from the steps themselves: seconds = step + rows x decode + tokens x prefill.

Normalized least mean squares: each measured step moves the three rates by a share of its error, split between them by
what each had in the step (B. Widrow, S. D. Stearns, "Adaptive Signal Processing", 1985, chapter 6). That needs no
history, follows a machine that becomes slower or faster within a few steps, and stays put in directions that the steps
say nothing about.
"""

from __future__ import annotations

RATE = 0.3
"""Share of an error that one step corrects."""
MOST_SURPRISE = 4.0
"""A step counts as at most so many times slower or faster than expected: others use the machine too."""
MIN_PREFILL_TOKENS = 16
"""A step that computes prompts at all computes so many tokens of them, whatever they cost."""
NUM_KNOWN = 4
"""Steps with prompts after which the rates are worth a prediction."""
FIRST_GUESS = 1e-3
_STEP_IN_TOKENS = 5.0
"""What a step costs beside its tokens, in prompt tokens; only the first steps believe it."""


class StepCost:
    """Rates in seconds. `token_seconds`: what a prompt token cost while warming up, where that was measured."""

    def __init__(self, token_seconds: float | None = None) -> None:
        guess = token_seconds or FIRST_GUESS
        self._scales = (_STEP_IN_TOKENS * guess, guess, guess)
        self._rates = list(self._scales)
        self._num_prefills = 0 if token_seconds is None else NUM_KNOWN

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step with so many decode rows and prompt tokens took so long."""
        self._num_prefills += num_prefill_tokens > 0
        amounts = (1, num_decodes, num_prefill_tokens)
        expected = sum(rate * amount for rate, amount in zip(self._rates, amounts, strict=True))
        error = min(seconds, MOST_SURPRISE * expected) - expected
        parts = [scale * amount for scale, amount in zip(self._scales, amounts, strict=True)]
        gain = RATE * error / sum(part * part for part in parts)
        floor = 1e-3 * self._scales[1]
        for index, (part, scale) in enumerate(zip(parts, self._scales, strict=True)):
            self._rates[index] = max(floor, self._rates[index] + gain * part * scale)

    def seconds(self, num_decodes: int, num_prefill_tokens: int) -> float:
        """What such a step is expected to take."""
        step, decode, prefill = self._rates
        return step + num_decodes * decode + num_prefill_tokens * prefill

    def num_prefill_tokens(self, num_decodes: int, target_seconds: float) -> int:
        """Prompt tokens that a step may compute beside its decode rows to take no longer than the target."""
        left = target_seconds - self.seconds(num_decodes, 0)
        return max(MIN_PREFILL_TOKENS, int(left / self._rates[2]))

    def prompt_seconds(self, num_tokens: int) -> float:
        """The least that a prompt takes from its first step to its first token; 0 while nothing is known."""
        return num_tokens * self._rates[2] if self._num_prefills >= NUM_KNOWN else 0.0
