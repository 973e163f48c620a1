"""The weights of a model by name and shape, from its config alone. Torch-free.

The loader fills exactly these; a test holds them against what the decoder takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.engine.models.config import LayerSpec, ModelConfig, NormSpec, WeightNames

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor that the model needs: Hugging Face's name -> shape."""
    return dict((*_embeddings(config), *_final_norm(config), *_layers(config)))


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights by part, or the bytes that they take; what is tied counts once."""

    embeddings: int
    """Tokens, learned positions, and the language-model head."""
    attention: int
    feed_forward: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.attention + self.feed_forward + self.norms


def count_weights(config: ModelConfig) -> WeightCounts:
    """How many weights each part of the model has."""
    attention = feed_forward = norms = 0
    for layer in config.layers:
        attention += _count(_attention(layer, config.hidden_size, config.names, ""))
        feed_forward += _count(_feed_forward(layer, config.hidden_size, config.names, ""))
        norms += _count(_block_norms(layer, config.hidden_size, config.names, ""))
    return WeightCounts(_count(_embeddings(config)), attention, feed_forward, norms + _count(_final_norm(config)))


class Storage(Protocol):
    """Says how many bytes weights take; `quire.engine.precision.Precision` is one."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Kinds of quantized matrices that stay as the file has them."""

    def matrix_bytes(
        self, out_features: int, in_features: int, *, bias: bool, precise: bool, kind: str | None = None
    ) -> int:
        """Of a linear layer, packed; `precise`: see `quire.kernels.interface.Kernels.pack`; `kind`: if kept."""

    def table_bytes(self, count: int) -> int:
        """Of weights that are only read by row."""

    def vector_bytes(self, count: int) -> int:
        """Of norms."""


def count_bytes(config: ModelConfig, storage: Storage) -> WeightCounts:
    """How many bytes each part of the model takes, its linear layers packed as `take_linear` packs them."""
    counts, names = count_weights(config), config.names
    head = names.prefix + names.embedding if config.tie_word_embeddings else names.lm_head
    kind = common_kind(config, storage.kept, [head])
    embeddings = storage.matrix_bytes(config.vocab_size, config.hidden_size, bias=False, precise=True, kind=kind)
    embeddings += storage.table_bytes(counts.embeddings - count_head(config))
    attention = feed_forward = 0
    for index, layer in enumerate(config.layers):
        prefix = names.prefix + names.layer.format(index)
        mixer, mlp = layer.attention, layer.feed_forward
        query_size, kv_size = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        for parts, out_features, in_features, bias in (
            (names.qkv, query_size + 2 * kv_size, config.hidden_size, mixer.qkv_bias),
            ((names.out,), config.hidden_size, query_size, mixer.out_bias),
        ):
            kind = common_kind(config, storage.kept, [prefix + name for name in parts])
            attention += storage.matrix_bytes(out_features, in_features, bias=bias, precise=False, kind=kind)
        attention += storage.vector_bytes(2 * mixer.head_dim if mixer.qk_norm is not None else 0)
        for parts, out_features, in_features in (
            (names.gate_up, mlp.intermediate_size * (2 if mlp.gated else 1), config.hidden_size),
            ((names.down,), config.hidden_size, mlp.intermediate_size),
        ):
            kind = common_kind(config, storage.kept, [prefix + name for name in parts])
            feed_forward += storage.matrix_bytes(out_features, in_features, bias=mlp.bias, precise=False, kind=kind)
    return WeightCounts(embeddings, attention, feed_forward, storage.vector_bytes(counts.norms))


def common_kind(config: ModelConfig, kept: Sequence[str], names: Sequence[str]) -> str | None:
    """What linear layers side by side are kept in: the kind of all their matrices in the file, where it is `kept`."""
    of = dict(config.quantized)
    kinds = {of.get(f"{name}.weight") for name in names}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind in kept else None


def count_head(config: ModelConfig) -> int:
    """Weights of the language-model head, which only rows that sample are multiplied with."""
    return config.vocab_size * config.hidden_size


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for _, shape in shapes)


def _embeddings(config: ModelConfig) -> Shapes:
    names, table = config.names, (config.vocab_size, config.hidden_size)
    yield f"{names.prefix}{names.embedding}.weight", table
    if not config.tie_word_embeddings:
        yield f"{names.lm_head}.weight", table
    if names.positions is not None:
        positions = (config.max_position_embeddings, config.hidden_size)
        yield f"{names.prefix}{names.positions}.weight", positions


def _final_norm(config: ModelConfig) -> Shapes:
    return _norm(config.final_norm, config.hidden_size, config.names.prefix + config.names.final_norm)


def _layers(config: ModelConfig) -> Shapes:
    names, hidden_size = config.names, config.hidden_size
    for index, layer in enumerate(config.layers):
        prefix = names.prefix + names.layer.format(index)
        yield from _attention(layer, hidden_size, names, prefix)
        yield from _feed_forward(layer, hidden_size, names, prefix)
        yield from _block_norms(layer, hidden_size, names, prefix)


def _attention(layer: LayerSpec, hidden_size: int, names: WeightNames, prefix: str) -> Shapes:
    spec = layer.attention
    query_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    qkv = [prefix + name for name in names.qkv]
    yield from _linear(qkv, (query_size, kv_size, kv_size), hidden_size, spec.qkv_bias, names.transposed)
    yield from _linear([prefix + names.out], (hidden_size,), query_size, spec.out_bias, names.transposed)
    if spec.qk_norm is not None:
        yield f"{prefix}{names.q_norm}.weight", (spec.head_dim,)
        yield f"{prefix}{names.k_norm}.weight", (spec.head_dim,)


def _feed_forward(layer: LayerSpec, hidden_size: int, names: WeightNames, prefix: str) -> Shapes:
    spec = layer.feed_forward
    up = (spec.intermediate_size,) * (2 if spec.gated else 1)
    yield from _linear([prefix + name for name in names.gate_up], up, hidden_size, spec.bias, names.transposed)
    yield from _linear([prefix + names.down], (hidden_size,), spec.intermediate_size, spec.bias, names.transposed)


def _block_norms(layer: LayerSpec, hidden_size: int, names: WeightNames, prefix: str) -> Shapes:
    yield from _norm(layer.norm, hidden_size, prefix + names.attention_norm)
    yield from _norm(layer.norm, hidden_size, prefix + names.feed_forward_norm)


def _norm(spec: NormSpec, size: int, name: str) -> Shapes:
    yield f"{name}.weight", (size,)
    if spec.kind == "layer":
        yield f"{name}.bias", (size,)


def _linear(names: Sequence[str], sizes: Sequence[int], in_features: int, bias: bool, transposed: bool) -> Shapes:
    """Layers side by side; one name for all `sizes` where the file has them fused. `transposed`: stored [in, out]."""
    for name, size in zip(names, sizes if len(names) == len(sizes) else [sum(sizes)], strict=True):
        yield f"{name}.weight", (in_features, size) if transposed else (size, in_features)
        if bias:
            yield f"{name}.bias", (size,)
