"""From a GGUF file's metadata to the same `ModelConfig` that a model folder gives. Torch-free.

The metadata is put into the words of config.json and read by the same table of architectures; what differs afterwards
is where the file keeps its weights (`token_embd`, `blk.0.attn_q`, ...), which the config says itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from quire.engine.gguf_file import GgufArray, GgufFile
from quire.engine.model_folder import GenerationDefaults
from quire.engine.models.architectures import ARCHITECTURES
from quire.engine.models.config import LayerSpec, ModelConfig, RopeSpec, WeightNames
from quire.engine.models.fields import Fields

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: Llama 3.1's stretching, worked out."""
NAMES = WeightNames(
    prefix="",
    embedding="token_embd",
    positions=None,
    layer="blk.{}.",
    attention_norm="attn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    q_norm="attn_q_norm",
    k_norm="attn_k_norm",
    out="attn_output",
    feed_forward_norm="ffn_norm",
    gate_up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    final_norm="output_norm",
    lm_head="output",
    ignorable=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd"),
)
GPT2_NAMES = replace(NAMES, positions="position_embd", qkv=("attn_qkv",), gate_up=("ffn_up",), ignorable=())

PERMUTED = ("llama", "smollm3")
"""Architectures whose query and key rows stand in the order of interleaved rope (`permuted_heads`)."""
END_TEXTS = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "<EOT>")
)
"""Control tokens that end an answer in every model that has them; few files name more than one of theirs."""
PLAIN = ("F32", "F16", "BF16")
"""Kinds of tensors that are not quantized."""
CONTROL = 3
"""token_type of tokens that are no text."""
OTHER_MODEL = "use a model of a supported architecture"
CHANGES_ANSWERS = (
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "logit_scale",
    "residual_scale",
    "use_parallel_residual",
)
"""Keys that no supported architecture has, and that would be wrong to pass over."""


def read_gguf_config(path: Path, model_name: str) -> ModelConfig:
    """Read and check a file's metadata.

    Raises ModelError: no GGUF file, truncated, an unknown quantization (see `GgufFile`), an unsupported architecture
    (M05), a count that is missing, no integer in range or does not fit the others (M07, M08), unknown rope type (M20).
    """
    with closing(GgufFile(path, model_name)) as file:
        return _config(file)


def read_gguf_defaults(path: Path, model_name: str) -> GenerationDefaults:
    """Every token that ends an answer, and the sampling that the file recommends (general.sampling.*)."""
    with closing(GgufFile(path, model_name)) as file:
        fields = _Metadata(file)
        named = [fields.token_id(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        kinds, tokens = file.numbers("tokenizer.ggml.token_type"), file.strings("tokenizer.ggml.tokens")
        ends = [
            i
            for i, (kind, text) in enumerate(zip(kinds, tokens, strict=False))
            if kind == CONTROL and text in END_TEXTS
        ]
        sampling = Fields(
            {key.rpartition(".")[2]: value for key, value in file.metadata.items() if key.startswith("general.sampl")},
            model_name,
            path.name,
            "general.sampling.",
        )
        return GenerationDefaults(
            eos_token_ids=tuple(dict.fromkeys([token_id for token_id in named if token_id is not None] + ends)),
            temperature=sampling.number("temp", above=-1e-9) if sampling.has("temp") else None,
            top_k=sampling.integer("top_k", minimum=0) if sampling.has("top_k") else None,
            top_p=sampling.number("top_p") if sampling.has("top_p") else None,
            min_p=sampling.number("min_p", above=-1e-9) if sampling.has("min_p") else None,
            repetition_penalty=sampling.number("penalty_repeat") if sampling.has("penalty_repeat") else None,
        )


def permuted_heads(file: GgufFile, config: ModelConfig, name: str) -> int | None:
    """How many heads the rows of tensor `name` are of, where they stand in another order than Hugging Face's.

    Files of the "llama" architecture hold the rows of queries and keys so that the two features that rotate together
    are neighbours: of a head of D rows, row 2i is Hugging Face's i, and row 2i + 1 its i + D / 2.
    """
    if file.metadata.get("general.architecture") not in PERMUTED:
        return None
    part = name.split(".")[-2]
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(part)


def _config(file: GgufFile) -> ModelConfig:
    fields = _Metadata(file)
    architecture = fields.architecture()
    values = ARCHITECTURE_WORDS[architecture](fields)
    words = Fields({key: value for key, value in values.items() if value is not None}, file.model, file.path.name)
    config = ARCHITECTURES[values["architectures"][0]](words)
    quantized = tuple(
        (name, tensor.kind.name.lower())
        for name, tensor in file.tensors.items()
        if len(tensor.shape) == 2 and tensor.kind.name not in PLAIN
    )
    config = replace(config, names=GPT2_NAMES if architecture == "gpt2" else NAMES, quantized=quantized)
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None:
        config = _with_factors(config, tuple(file.floats(factors)), file)
    return config


def _with_factors(config: ModelConfig, factors: tuple[float, ...], file: GgufFile) -> ModelConfig:
    """Every layer's rope with frequencies divided by `factors`."""

    def stretched(layer: LayerSpec) -> LayerSpec:
        rope = layer.attention.rope
        if rope is None:
            return layer
        if len(factors) != rope.rotary_dim // 2 or not all(0 < factor < 1e9 for factor in factors):
            why = f"{ROPE_FACTORS} holds {len(factors)} factors, expected {rope.rotary_dim // 2} above 0"
            raise file.fault("bad rope factors", why)
        divided = RopeSpec(
            "longrope",
            rope.theta,
            rope.rotary_dim,
            rope.max_position_embeddings,
            original_max_position_embeddings=rope.max_position_embeddings,
            short_factor=factors,
            long_factor=factors,
        )
        return replace(layer, attention=replace(layer.attention, rope=divided))

    return replace(config, layers=tuple(map(stretched, config.layers)))


class _Metadata:
    """Typed reading of one file's keys; `<arch>.` stands before those of the architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.fields = Fields(dict(file.metadata), file.model, file.path.name)
        self.prefix = ""

    def architecture(self) -> str:
        """The supported architecture that the file names."""
        found = self.fields.values.get("general.architecture")
        if found not in ARCHITECTURE_WORDS:
            why = f"general.architecture is {found!r:.80}, supported are {', '.join(ARCHITECTURE_WORDS)}"
            raise self.file.fault("unknown architecture" if found else "architecture missing", why, OTHER_MODEL)
        self.prefix = f"{found}."
        for name in CHANGES_ANSWERS:
            value = self.fields.values.get(self.prefix + name)
            if value and not (name == "expert_count" and value == 1):
                raise self.file.fault("unsupported model", f"{self.prefix}{name} is {value!r:.80}", OTHER_MODEL)
        return str(found)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive count of the architecture; an array must hold the same one for every layer."""
        key = self.prefix + name
        if isinstance(self.fields.values.get(key), GgufArray):
            found = set(self.file.numbers(key))
            if len(found) != 1:
                why = f"{key} differs from layer to layer: {sorted(found)[:8]}"
                raise self.file.fault("unsupported model", why, OTHER_MODEL)
            return Fields({key: next(iter(found))}, self.file.model, self.file.path.name).integer(key)
        return self.fields.integer(key, default)

    def optional(self, name: str) -> int | None:
        """A positive count, or None where it is absent or 0."""
        return self.integer(name) if self.fields.values.get(self.prefix + name) else None

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number of the architecture."""
        return self.fields.number(self.prefix + name, default)

    def string(self, name: str, default: str) -> str:
        """A string of the architecture."""
        return self.fields.string(self.prefix + name, default)

    def token_id(self, key: str) -> int | None:
        """The token id under `key`."""
        ids = self.fields.token_ids(key)
        return ids[0] if ids else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that must be there."""
        tensor = self.file.tensors.get(name)
        if tensor is None or len(tensor.shape) != 2:
            found = "not there" if tensor is None else f"of shape {list(tensor.shape)}"
            raise self.file.fault("tensors missing", f"{name} is {found}, expected a matrix")
        return tensor.shape

    def common(self) -> dict[str, Any]:
        """What config.json says for every architecture."""
        return {
            "vocab_size": self.shape("token_embd.weight")[0],
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            "dtype": self.dtype(),
            "bos_token_id": self.token_id("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.token_id("tokenizer.ggml.eos_token_id"),
        }

    def dtype(self) -> str:
        """What the matrices are stored in; bfloat16 where they are quantized."""
        kind = self.file.tensors["token_embd.weight"].kind.name
        layer = self.file.tensors.get("blk.0.ffn_down.weight")
        kinds = {kind} if layer is None else {kind, layer.kind.name}
        return {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}.get(frozenset(kinds), "bfloat16")


def _llama_like(architecture: str, fields: _Metadata) -> dict[str, Any]:
    heads, hidden_size = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.optional("attention.key_length")
    value_dim = fields.optional("attention.value_length")
    if head_dim != value_dim:
        why = f"attention.key_length is {head_dim}, attention.value_length {value_dim}"
        raise fields.file.fault("unsupported model", why, OTHER_MODEL)
    if head_dim is None and hidden_size % heads == 0:
        head_dim = hidden_size // heads
    rotary_dim = fields.optional("rope.dimension_count") or head_dim
    if rotary_dim != head_dim:
        why = f"{fields.prefix}rope.dimension_count is {rotary_dim}, and heads have {head_dim} features"
        raise fields.file.fault("unsupported model", why, OTHER_MODEL)
    window = fields.optional("attention.sliding_window")
    if window and architecture == "LlamaForCausalLM":
        architecture = "MistralForCausalLM"
    tensors = fields.file.tensors
    layers = fields.integer("block_count")
    return {
        **fields.common(),
        "architectures": [architecture],
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": fields.integer("feed_forward_length"),
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(fields),
        "attention_bias": "blk.0.attn_output.bias" in tensors or "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "sliding_window": window,
        "use_sliding_window": window is not None and architecture != "MistralForCausalLM",
        "layer_types": ["sliding_attention"] * layers if window and architecture.startswith("Qwen") else None,
    }


def _rope_scaling(fields: _Metadata) -> dict[str, Any] | None:
    kind = fields.string("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
    original = fields.optional("rope.scaling.original_context_length")
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        for word, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            scaling[word] = fields.number(f"rope.scaling.{key}", 32.0 if word == "beta_fast" else 1.0)
    return scaling


def _gpt2(fields: _Metadata) -> dict[str, Any]:
    return {
        **fields.common(),
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": fields.integer("embedding_length"),
        "n_layer": fields.integer("block_count"),
        "n_head": fields.integer("attention.head_count"),
        "n_inner": fields.integer("feed_forward_length"),
        "n_positions": fields.integer("context_length"),
        "layer_norm_epsilon": fields.number("attention.layer_norm_epsilon"),
    }


def _named(architecture: str) -> Callable[[_Metadata], dict[str, Any]]:
    return lambda fields: _llama_like(architecture, fields)


ARCHITECTURE_WORDS: dict[str, Callable[[_Metadata], dict[str, Any]]] = {
    "llama": _named("LlamaForCausalLM"),
    "qwen2": _named("Qwen2ForCausalLM"),
    "qwen3": _named("Qwen3ForCausalLM"),
    "smollm3": _named("SmolLM3ForCausalLM"),
    "gpt2": _gpt2,
}
"""general.architecture -> what config.json would say."""
