"""How long a step will take, from bytes and operations alone: a prediction, not a measurement. Torch-free.

The roofline (Williams et al., 2009): weights and the keys and values of every sequence are read once a step, each row
is multiplied with every weight of the body, each sampling row with the head. `quire.engine.devices` has the peaks, and
the shares of them that are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine.devices import Device
from quire.engine.models.config import AttentionSpec, ModelConfig
from quire.engine.models.shapes import count_head, count_weights
from quire.engine.precision import Precision

BUDGET_SECONDS = 0.25
"""What the token budget of a step is worth on a CPU, as in `quire.engine.warm_up`."""
MIN_BUDGET, MAX_BUDGET = 32, 8192


@dataclass(frozen=True)
class Roofline:
    """A model in a precision on a device."""

    model: ModelConfig
    precision: Precision
    device: Device

    def decode_seconds(self, batch: int, context: int) -> float:
        """One step in which `batch` sequences of `context` tokens get one more token each."""
        return self._step(rows=batch, sampled=batch) + batch * self._kv_seconds(context)

    def prefill_seconds(self, num_tokens: int, budget: int) -> float:
        """From an empty cache to the first token of a prompt, in steps of at most `budget` tokens."""
        seconds = self._attention_seconds(num_tokens)
        for first in range(0, num_tokens, budget):
            rows = min(budget, num_tokens - first)
            seconds += self._step(rows, sampled=int(first + rows == num_tokens))
        return seconds

    def token_budget(self, given: int | None) -> int:
        """Tokens of a step: what was asked for; on a CPU what takes `BUDGET_SECONDS`; else the most there is."""
        if given is not None:
            return given
        if self.device.kind == "gpu":
            return MAX_BUDGET
        tokens, seconds = MIN_BUDGET, self.prefill_seconds(MIN_BUDGET, MIN_BUDGET)
        while tokens < min(MAX_BUDGET, self.model.max_position_embeddings) and seconds < BUDGET_SECONDS:
            tokens *= 2
            seconds = self.prefill_seconds(tokens, tokens)
        budget = int(tokens * BUDGET_SECONDS / seconds)
        return max(MIN_BUDGET, min(MAX_BUDGET, budget) // MIN_BUDGET * MIN_BUDGET)

    def _step(self, rows: int, sampled: int) -> float:
        """All matmuls of a step and what surrounds them, without attention."""
        counts, assumed = count_weights(self.model), self.device.efficiency
        body, head = counts.attention + counts.feed_forward, count_head(self.model) if sampled else 0
        read = (body + head) * self.precision.weight_bytes / (assumed.weights * self.device.bandwidth)
        multiply = 2 * (body * rows + head * sampled) / (assumed.matmul * self.device.flops[self.precision.activations])
        matmuls = max(read, multiply) if assumed.overlaps else read + multiply
        return matmuls + assumed.layer_seconds * self.model.num_layers + assumed.step_seconds

    def _kv_seconds(self, context: int) -> float:
        """To read one sequence's keys and values."""
        slot_bytes = self.precision.slot_bytes
        read = sum(
            2 * spec.num_kv_heads * slot_bytes(spec.head_dim) * min(context, spec.window or context)
            for spec in self._mixers()
        )
        return read / (self.device.efficiency.kv * self.device.bandwidth)

    def _attention_seconds(self, num_tokens: int) -> float:
        """Of a whole prompt: queries times keys, weights times values, for every pair that the mask lets through."""
        operations = sum(
            4 * spec.num_heads * spec.head_dim * _pairs(num_tokens, spec.window) for spec in self._mixers()
        )
        return operations / (self.device.efficiency.attention * self.device.flops[self.precision.activations])

    def _mixers(self) -> list[AttentionSpec]:
        return [layer.attention for layer in self.model.layers]


def _pairs(num_tokens: int, window: int | None) -> int:
    """Of a query and a key that it may see."""
    width = min(num_tokens, window or num_tokens)
    return width * (width + 1) // 2 + (num_tokens - width) * width
