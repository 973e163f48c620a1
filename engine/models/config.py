"""What a model is, as values: read once from config.json, torch-free, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
ActivationKind = Literal["silu", "gelu", "gelu_tanh", "relu"]
"""The same words as `quire.kernels.interface.Activation`, without torch."""


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (Su et al., 2021) and how they are stretched to long contexts."""

    kind: RopeKind
    theta: float
    rotary_dim: int
    """Features of a head that rotate, the first ones; even."""
    max_position_embeddings: int
    """The field of config.json, which `dynamic` scales from."""
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    """Context before stretching: yarn, longrope, llama3."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines: yarn, longrope."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True)
class NormSpec:
    """kind "rms" (Zhang & Sennrich, 2019) or "layer" (Ba et al., 2016, with bias)."""

    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention with num_heads / num_kv_heads queries a key (Ainslie et al., 2023)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    """Position i sees i - window + 1 .. i; None: everything before it."""
    rope: RopeSpec | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: NormSpec | None = None
    """A norm over each head of queries and keys, before rope."""


@dataclass(frozen=True)
class FeedForwardSpec:
    """act(gate) * up when gated, act(up) otherwise; then down."""

    intermediate_size: int
    activation: ActivationKind
    gated: bool
    bias: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One block: norm, attention, residual, norm, feed-forward, residual."""

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norm: NormSpec


@dataclass(frozen=True)
class WeightNames:
    """Where a family keeps its weights, as Hugging Face names them; layer names are relative to their layer.

    `qkv` and `gate_up` name the matrices whose outputs stand side by side, one name where the file has them fused.
    """

    prefix: str
    """Of every name but `lm_head`; files of the bare model leave it out."""
    embedding: str
    positions: str | None
    layer: str
    """A format of the layer index."""
    attention_norm: str
    qkv: tuple[str, ...]
    q_norm: str
    k_norm: str
    out: str
    feed_forward_norm: str
    gate_up: tuple[str, ...]
    down: str
    final_norm: str
    lm_head: str = "lm_head"
    transposed: bool = False
    """Linear layers are stored [in, out]."""
    ignorable: tuple[str, ...] = ()
    """Regular expressions of names that old files hold and nothing needs."""


@dataclass(frozen=True)
class CacheSpec:
    """What one layer keeps of each token: a key and a value of [kv_heads, head_dim]; `window` bounds how long."""

    num_kv_heads: int
    head_dim: int
    window: int | None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only model. Sizes of attention stand in the layers; those below are layer 0's, for printing."""

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    """The longest context the weights were made for, stretching included."""
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    names: WeightNames
    tie_word_embeddings: bool
    learned_positions: bool
    torch_dtype: str
    """float32 | bfloat16 | float16, as config.json says; "" when it says nothing."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    quantized: tuple[tuple[str, str], ...] = ()
    """(name, kind) of the matrices that the file has quantized: q8_0, q4_k, ..."""
    warnings: tuple[str, ...] = field(default=())
    """Sentences for the operator."""

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.layers[0].attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return self.layers[0].attention.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.layers[0].attention.head_dim

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """What each layer caches."""
        return tuple(
            CacheSpec(layer.attention.num_kv_heads, layer.attention.head_dim, layer.attention.window)
            for layer in self.layers
        )
