"""The one decoder: a table of blocks between an embedding and a language-model head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.engine.models.attention import Attention
from quire.engine.models.config import CacheSpec, LayerSpec, ModelConfig, RopeSpec, WeightNames
from quire.engine.models.feed_forward import take_feed_forward
from quire.engine.models.norm import norm_parts, take_norm
from quire.engine.models.rope import NoRope, Rope, rope_table
from quire.engine.models.weights import WeightSource, take_linear
from quire.kernels import AttentionPlan, Kernels
from quire.kernels.layer import ComputesLayers, LayerParts


class Block:
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        spec: LayerSpec,
        hidden_size: int,
        names: WeightNames,
        prefix: str,
        rope: Rope | NoRope,
        kernels: Kernels,
        weights: WeightSource,
    ) -> None:
        self.mixer_norm = take_norm(spec.norm, hidden_size, prefix + names.attention_norm, kernels, weights)
        self.mixer = Attention(spec.attention, hidden_size, names, prefix, rope, kernels, weights)
        self.feed_forward_norm = take_norm(spec.norm, hidden_size, prefix + names.feed_forward_norm, kernels, weights)
        self.feed_forward = take_feed_forward(spec.feed_forward, hidden_size, names, prefix, kernels, weights)
        self._whole = kernels.layer(self._parts()) if isinstance(kernels, ComputesLayers) else None

    def _parts(self) -> LayerParts:
        """What the layer is made of."""
        return LayerParts(
            norm=norm_parts(self.mixer_norm),
            feed_forward_norm=norm_parts(self.feed_forward_norm),
            **self.mixer.parts(),
            **self.feed_forward.parts(),
        )

    def __call__(self, x: Tensor, positions: Tensor, plan: AttentionPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        if self._whole is not None:
            return self._whole(x, positions, plan, k_cache, v_cache)
        x = x + self.mixer(self.mixer_norm(x), positions, plan, k_cache, v_cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TokenEmbedding:
    """A table of its own."""

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        self.table, self.dtype = table, dtype

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids int64 [T] -> [T, hidden]."""
        return F.embedding(token_ids, self.table).to(self.dtype)


class TiedEmbedding:
    """The language-model head's own weights, read by row."""

    def __init__(self, kernels: Kernels, head: Any) -> None:
        self.kernels, self.head = kernels, head

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids int64 [T] -> [T, hidden]."""
        return self.kernels.embedding(token_ids, self.head)


class WithLearnedPositions:
    """A token's embedding plus its position's (GPT-2)."""

    def __init__(self, tokens: TokenEmbedding | TiedEmbedding, table: Tensor) -> None:
        self.tokens, self.table = tokens, table

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids, positions int64 [T] -> [T, hidden]."""
        return self.tokens(token_ids, positions) + F.embedding(positions, self.table)


class Decoder:
    """A decoder-only model on one device. It takes its weights, layer by layer, while it is made."""

    def __init__(
        self, config: ModelConfig, kernels: Kernels, weights: WeightSource, *, num_positions: int | None = None
    ) -> None:
        """`num_positions`: the longest sequence that will be served (default: all the model can)."""
        self.config, self.kernels = config, kernels
        names, hidden_size = config.names, config.hidden_size
        ropes: dict[RopeSpec | None, Rope | NoRope] = {None: NoRope()}
        for layer in config.layers:
            spec = layer.attention.rope
            if spec is not None and spec not in ropes:
                table = rope_table(spec, num_positions or config.max_position_embeddings)
                ropes[spec] = Rope(kernels, table.to(kernels.device))

        self.embed, self.head = self._take_ends(weights)
        self.blocks = [
            Block(
                layer,
                hidden_size,
                names,
                names.prefix + names.layer.format(index),
                ropes[layer.attention.rope],
                kernels,
                weights,
            )
            for index, layer in enumerate(config.layers)
        ]
        self.final_norm = take_norm(config.final_norm, hidden_size, names.prefix + names.final_norm, kernels, weights)
        self.weights_bytes = weights.bytes_taken

    def _take_ends(self, weights: WeightSource) -> tuple[TokenEmbedding | TiedEmbedding | WithLearnedPositions, Any]:
        """The embedding and the packed head; one tensor when they are tied."""
        config, names = self.config, self.config.names
        shape = (config.vocab_size, config.hidden_size)
        embedding = names.prefix + names.embedding
        tokens: TokenEmbedding | TiedEmbedding
        if config.tie_word_embeddings:
            head = take_linear(
                weights, self.kernels, [embedding], shape[:1], shape[1], bias=False, transposed=False, precise=True
            )
            tokens = TiedEmbedding(self.kernels, head)
        else:
            table = weights.take(f"{embedding}.weight", shape)
            tokens = TokenEmbedding(table, self.kernels.activation_dtype(table.dtype))
            head = take_linear(
                weights, self.kernels, [names.lm_head], shape[:1], shape[1], bias=False, transposed=False, precise=True
            )
        if names.positions is None:
            return tokens, head
        table = weights.take(
            f"{names.prefix}{names.positions}.weight", (config.max_position_embeddings, config.hidden_size)
        )
        return WithLearnedPositions(tokens, table), head

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        plans: Sequence[AttentionPlan],
        kv: Sequence[tuple[Tensor, Tensor]],
        on_layer: Callable[[], None],
    ) -> Tensor:
        """Compute the step's tokens; their keys and values are written to the caches on the way.

        input_ids, positions int64 [T]; for each layer, plans: where its keys and values lie, and kv: its caches, each
        [blocks, kv_heads, block_size, D]; `on_layer` is called after each. Returns the hidden states [T, hidden] before
        the final norm, which `logits` applies to the rows that need it.
        """
        hidden = self.embed(input_ids, positions)
        for block, plan, (k_cache, v_cache) in zip(self.blocks, plans, kv, strict=True):
            hidden = block(hidden, positions, plan, k_cache, v_cache)
            on_layer()
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and language-model head of the rows hidden [R, hidden] -> float32 [R, vocab_size]."""
        return self.kernels.linear(self.final_norm(hidden), self.head).float()

    def cache_spec(self) -> tuple[CacheSpec, ...]:
        """What each layer caches."""
        return self.config.cache_specs()
