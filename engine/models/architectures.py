"""The table of architectures: what config.json's `architectures` names -> a `ModelConfig`.

A new checkpoint of a known family needs no code; a new family is an entry of the table and the few lines in which it
differs. Nothing here looks at a model's name, and no Python file of a model folder is ever imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quire.engine.models.config import (
    ActivationKind,
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelConfig,
    NormSpec,
    RopeSpec,
    WeightNames,
)
from quire.engine.models.fields import Fields
from quire.engine.models.json_file import read_json_object
from quire.engine.models.rope_fields import read_rope

ACTIVATIONS: dict[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
LLAMA_NAMES = WeightNames(
    prefix="model.",
    embedding="embed_tokens",
    positions=None,
    layer="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    out="self_attn.o_proj",
    feed_forward_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    final_norm="norm",
    ignorable=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
GPT2_NAMES = WeightNames(
    prefix="transformer.",
    embedding="wte",
    positions="wpe",
    layer="h.{}.",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    q_norm="",
    k_norm="",
    out="attn.c_proj",
    feed_forward_norm="ln_2",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    final_norm="ln_f",
    transposed=True,
    ignorable=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED_FIX = "use the same model's unquantized weights (bfloat16 or float16 safetensors)"


def read_model_config(folder: Path, model_name: str, file: str = "config.json") -> ModelConfig:
    """Read and check config.json, or what it is called.

    Raises ModelError: file missing, too large or no JSON object (M04), architecture missing or unknown (M05), a count
    that is no integer in range or does not fit the others (M07, M08), unknown rope type, quantization or dtype (M20).
    """
    fields = Fields(read_json_object(folder, file, model_name), model_name, file)
    reader = ARCHITECTURES[_architecture(fields)]
    _refuse_quantization(fields)
    config = reader(fields)
    return replace(config, warnings=_warnings(fields, folder))


def _architecture(fields: Fields) -> str:
    """The first supported entry of `architectures`."""
    supported = f"supported are {', '.join(sorted(ARCHITECTURES))}"
    names = fields.values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise fields.error("architecture missing", f"architectures is {names!r}, {supported}", "use a supported model")
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    raise fields.error("unknown architecture", f"{', '.join(names)[:200]}; {supported}", "use a supported model")


def _refuse_quantization(fields: Fields) -> None:
    for name in ("quantization_config", "compression_config"):
        if fields.has(name):
            method = fields.object(name).string("quant_method", "an unnamed method")
            raise fields.error("quantized weights", f"{name} names {method}, which is not supported yet", QUANTIZED_FIX)


def _warnings(fields: Fields, folder: Path) -> tuple[str, ...]:
    """Code that came with the model (M06)."""
    code = sorted(path.name for path in folder.glob("*.py"))
    if not code and "auto_map" not in fields.values:
        return ()
    named = f" ({', '.join(code[:5])})" if code else ""
    return (f"the model folder brings Python code{named}; it is never imported, the built-in decoder is used",)


def _common(fields: Fields, *, tied: bool) -> tuple[str, bool, tuple[int, ...], int | None]:
    """torch_dtype, tie_word_embeddings, eos_token_ids, bos_token_id."""
    dtype = fields.string("dtype", fields.string("torch_dtype", ""))
    if dtype not in ("", *DTYPES):
        raise fields.error(
            "unknown dtype", f"dtype is {dtype!r}, supported are {', '.join(DTYPES)}", "use weights in one of these"
        )
    bos = fields.token_ids("bos_token_id")
    return (
        dtype,
        fields.boolean("tie_word_embeddings", tied),
        fields.token_ids("eos_token_id"),
        bos[0] if bos else None,
    )


def _activation(fields: Fields, name: str, default: str) -> ActivationKind:
    kind = fields.string(name, default)
    if kind not in ACTIVATIONS:
        raise fields.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


def _heads(fields: Fields, hidden_size: int, default_head_dim: int | None) -> tuple[int, int, int]:
    """(heads, kv heads, head dim), checked against each other."""
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error(
            "fields do not fit", f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if fields.has("head_dim") or default_head_dim:
        return heads, kv_heads, fields.integer("head_dim", default_head_dim)
    if hidden_size % heads:
        raise fields.error(
            "fields do not fit", f"hidden_size {hidden_size} is no multiple of num_attention_heads {heads}"
        )
    return heads, kv_heads, hidden_size // heads


def _llama_like(
    fields: Fields,
    windows: Callable[[Fields, int], list[int | None]],
    *,
    qkv_bias: bool | None = None,
    qk_norm: bool = False,
    default_head_dim: int | None = None,
    default_theta: float = 10_000.0,
    ropes: Callable[[Fields, int], list[bool]] | None = None,
    tied: bool = False,
) -> ModelConfig:
    """Llama and what descends from it: RMS norm, rope, grouped heads, gated feed-forward.

    `windows` and `ropes` say for each layer how far it looks back and whether it rotates. `qkv_bias` None reads
    attention_bias, which then counts for the output too.
    """
    hidden_size, num_layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    vocab_size = fields.integer("vocab_size")
    positions = fields.integer("max_position_embeddings", 2048)
    heads, kv_heads, head_dim = _heads(fields, hidden_size, default_head_dim)
    rope = read_rope(fields, head_dim=head_dim, max_position_embeddings=positions, default_theta=default_theta)
    norm = NormSpec("rms", fields.number("rms_norm_eps", 1e-6))
    attention_bias = fields.boolean("attention_bias", False)
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        window=None,
        rope=None,
        qkv_bias=attention_bias if qkv_bias is None else qkv_bias,
        out_bias=attention_bias if qkv_bias is None else False,
        qk_norm=norm if qk_norm else None,
    )
    feed_forward = FeedForwardSpec(
        intermediate_size=fields.integer("intermediate_size"),
        activation=_activation(fields, "hidden_act", "silu"),
        gated=True,
        bias=fields.boolean("mlp_bias", False),
    )
    rotates = ropes(fields, num_layers) if ropes else [True] * num_layers
    layers = tuple(
        LayerSpec(replace(attention, window=window, rope=rope if rotate else None), feed_forward, norm)
        for window, rotate in zip(windows(fields, num_layers), rotates, strict=True)
    )
    dtype, tie, eos, bos = _common(fields, tied=tied)
    names = LLAMA_NAMES
    if tie:
        names = replace(names, ignorable=(*names.ignorable, r"lm_head\.weight"))
    return ModelConfig(
        architecture=_architecture(fields),
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        max_position_embeddings=_stretched(rope, positions),
        layers=layers,
        final_norm=norm,
        names=names,
        tie_word_embeddings=tie,
        learned_positions=False,
        torch_dtype=dtype,
        eos_token_ids=eos,
        bos_token_id=bos,
    )


def _stretched(rope: RopeSpec, positions: int) -> int:
    """Checkpoints with yarn often leave max_position_embeddings at the length before stretching."""
    if rope.kind != "yarn":
        return positions
    return max(positions, int(rope.original_max_position_embeddings * rope.factor))


def _no_window(fields: Fields, num_layers: int) -> list[int | None]:
    return [None] * num_layers


def _mistral_windows(fields: Fields, num_layers: int) -> list[int | None]:
    """One window for all layers; 4,096 when the field is absent, none when it is null."""
    if "sliding_window" in fields.values and fields.values["sliding_window"] is None:
        return [None] * num_layers
    return [fields.integer("sliding_window", 4096)] * num_layers


def _qwen_windows(fields: Fields, num_layers: int) -> list[int | None]:
    """Only with use_sliding_window: the layers that layer_types names, or those from max_window_layers on."""
    if not fields.boolean("use_sliding_window", False) or not fields.has("sliding_window"):
        return [None] * num_layers
    window = fields.integer("sliding_window")
    kinds = fields.values.get("layer_types")
    if kinds is None:
        first = fields.integer("max_window_layers", 28, minimum=0)
        return [window if layer >= first else None for layer in range(num_layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}
    ):
        raise fields.wrong("layer_types", f"{num_layers} times full_attention or sliding_attention")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _smollm3_ropes(fields: Fields, num_layers: int) -> list[bool]:
    """no_rope_layers holds 1 where a layer rotates; without it every no_rope_layer_interval-th does not."""
    flags = fields.values.get("no_rope_layers")
    if flags is None:
        interval = fields.integer("no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if not isinstance(flags, list) or len(flags) < num_layers or not all(flag in (0, 1) for flag in flags):
        raise fields.wrong("no_rope_layers", f"a list of at least {num_layers} zeros and ones")
    return [flag == 1 for flag in flags[:num_layers]]


def _smollm3_windows(fields: Fields, num_layers: int) -> list[int | None]:
    """With use_sliding_window the layers without rope have the window, unless layer_types says otherwise."""
    if fields.has("layer_types") or not fields.boolean("use_sliding_window", False):
        return _qwen_windows(fields, num_layers)
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    return [None if rotates else window for rotates in _smollm3_ropes(fields, num_layers)]


def _gpt2(fields: Fields) -> ModelConfig:
    """GPT-2: layer norm, learned positions, plain feed-forward, biases everywhere, linear layers stored [in, out]."""
    hidden_size, num_layers, heads = fields.integer("n_embd"), fields.integer("n_layer"), fields.integer("n_head")
    if hidden_size % heads:
        raise fields.error("fields do not fit", f"n_embd {hidden_size} is no multiple of n_head {heads}")
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if fields.boolean(name, usual) is not usual:
            raise fields.wrong(name, f"{str(usual).lower()}; the other is not supported")
    norm = NormSpec("layer", fields.number("layer_norm_epsilon", 1e-5))
    attention = AttentionSpec(heads, heads, hidden_size // heads, None, None, qkv_bias=True, out_bias=True)
    feed_forward = FeedForwardSpec(
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        activation=_activation(fields, "activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    dtype, tie, eos, bos = _common(fields, tied=True)
    names = GPT2_NAMES
    if tie:
        names = replace(names, ignorable=(*names.ignorable, r"lm_head\.weight"))
    return ModelConfig(
        architecture=_architecture(fields),
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        max_position_embeddings=fields.integer("n_positions", 1024),
        layers=(LayerSpec(attention, feed_forward, norm),) * num_layers,
        final_norm=norm,
        names=names,
        tie_word_embeddings=tie,
        learned_positions=True,
        torch_dtype=dtype,
        eos_token_ids=eos,
        bos_token_id=bos,
    )


ARCHITECTURES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": lambda fields: _llama_like(fields, _no_window),
    "MistralForCausalLM": lambda fields: _llama_like(fields, _mistral_windows, qkv_bias=False),
    "Qwen2ForCausalLM": lambda fields: _llama_like(fields, _qwen_windows, qkv_bias=True),
    "Qwen3ForCausalLM": lambda fields: _llama_like(fields, _qwen_windows, qk_norm=True, default_head_dim=128),
    "SmolLM3ForCausalLM": lambda fields: _llama_like(
        fields, _smollm3_windows, ropes=_smollm3_ropes, default_theta=2_000_000.0, tied=True
    ),
    "GPT2LMHeadModel": _gpt2,
}
"""Supported architectures."""


def supported_architectures() -> tuple[str, ...]:
    """The names that `read_model_config` accepts, sorted."""
    return tuple(sorted(ARCHITECTURES))


__all__ = ["read_model_config", "supported_architectures"]
