"""Tiny random checkpoints of every supported family, with a tokenizer, that can tell a right answer from a wrong one.

Plain random initialisation makes a model that repeats one token whatever it reads. These weights are scaled, and each
family's seed chosen, so that 64 greedy tokens after `PROMPT` hold at least 32 distinct ones, the best two logits are
more than 1e-3 apart at every step, no EOS comes, and the first prompt token changes what follows
(tests/engine/test_models.py asserts it).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm", "gpt2")
PROMPT = (17, 301, 45, 9, 260, 77, 412, 33, 150, 8, 222, 390)
"""Token ids within every tiny vocabulary, none special."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, END_OF_TURN = 0, 2
"""Ids of the two EOS tokens."""
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call these tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
WORDS = (
    "the a one two three small large red green blue house river mountain window table garden letter number answer "
    "question morning evening winter summer friend mother father teacher doctor city village street bridge train "
    "ticket reads writes runs walks sees finds gives takes keeps opens closes begins ends because while before after "
    "between under over through without always never often slowly quickly quietly happy careful bright heavy empty "
    "memory engine token model server request stream answer block table cache step"
)

_LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "mistral": _LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
    "qwen2": _LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0},
    "qwen3": _LLAMA
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "rope_theta": 1000000.0},
    "smollm": _LLAMA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
}
_SEEDS = {"llama": 5, "mistral": 1, "qwen2": 5, "qwen3": 7, "smollm": 7, "gpt2": 4}


@functools.cache
def tiny_tokenizer() -> str:
    """tokenizer.json of a byte-level BPE tokenizer of some 600 tokens, trained on random sentences of `WORDS`."""
    chooser = random.Random(0)
    lines = [
        " ".join(chooser.choices(WORDS.split(), k=12)).capitalize() + ". 0123456789 Zürich 東京 🙂" for _ in range(400)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.to_str()


def tiny_checkpoint(
    directory: Path,
    family: str = "llama",
    *,
    dtype: str = "float32",
    num_shards: int = 1,
    seed: int | None = None,
    **overrides: Any,
) -> Path:
    """A model folder of `family` under `directory`, written once and then found again.

    `overrides` replace or add keys of config.json (None removes one). `dtype` is the one on disk.
    """
    key = json.dumps([family, dtype, num_shards, seed, overrides], sort_keys=True)
    folder = directory / f"{family}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    config = _CONFIGS[family] | {
        "vocab_size": Tokenizer.from_str(tiny_tokenizer()).get_vocab_size(),
        "dtype": dtype,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
    }
    config = {name: value for name, value in (config | overrides).items() if value is not None}
    draft = Path(tempfile.mkdtemp(dir=directory))
    _write_json(draft / "config.json", config)
    _write_json(draft / "generation_config.json", {"eos_token_id": [END_OF_TURN, END_OF_TEXT], "bos_token_id": 0})
    (draft / "tokenizer.json").write_text(tiny_tokenizer())
    _write_json(draft / "tokenizer_config.json", _tokenizer_config())
    (draft / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    weights = tiny_weights(config, seed=_SEEDS[family] if seed is None else seed)
    save_weights(draft, {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}, num_shards)
    os.replace(draft, folder)
    return folder


def save_weights(folder: Path, weights: dict[str, Tensor], num_shards: int = 1) -> None:
    """Write model.safetensors, or shards with their index."""
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def tiny_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Random weights under Hugging Face's names for a config of this file."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0, *, fan_in: int | None = None) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * gain * (fan_in or columns) ** -0.5

    def vector(size: int, mean: float, deviation: float = 0.1) -> Tensor:
        return mean + deviation * torch.randn(size, generator=generator)

    if config["model_type"] == "gpt2":
        return _gpt2_weights(config, matrix, vector)
    return _llama_weights(config, matrix, vector)


def _llama_weights(config: dict[str, Any], matrix: Any, vector: Any) -> dict[str, Tensor]:
    """Llama's names; Qwen2's biases and Qwen3's norms by model_type."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    attention_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    weights = {"model.embed_tokens.weight": matrix(vocabulary, hidden, 1.0), "model.norm.weight": vector(hidden, 1.0)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = matrix(size, hidden, 2.0 if name != "v" else 1.0)
            if attention_bias:
                weights[f"{prefix}self_attn.{name}_proj.bias"] = vector(size, 0.0, 0.5)
        weights[f"{prefix}self_attn.o_proj.weight"] = matrix(hidden, q_size, 2.0)
        if attention_bias and config["model_type"] == "llama":
            weights[f"{prefix}self_attn.o_proj.bias"] = vector(hidden, 0.0)
        if config["model_type"] == "qwen3":
            weights[f"{prefix}self_attn.q_norm.weight"] = vector(head_dim, 1.5)
            weights[f"{prefix}self_attn.k_norm.weight"] = vector(head_dim, 1.5)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            weights[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape, 2.0)
            if config.get("mlp_bias", False):
                weights[f"{prefix}mlp.{name}_proj.bias"] = vector(shape[0], 0.0)
        weights[f"{prefix}input_layernorm.weight"] = vector(hidden, 1.0)
        weights[f"{prefix}post_attention_layernorm.weight"] = vector(hidden, 1.0)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(vocabulary, hidden, 2.0)
    return weights


def _gpt2_weights(config: dict[str, Any], matrix: Any, vector: Any) -> dict[str, Tensor]:
    """GPT-2's names; its linear layers are stored [in, out]."""
    hidden = config["n_embd"]
    inner = config.get("n_inner") or 4 * hidden
    weights = {
        "transformer.wte.weight": matrix(config["vocab_size"], hidden, 1.0),
        "transformer.wpe.weight": matrix(config["n_positions"], hidden, 1.0),
        "transformer.ln_f.weight": vector(hidden, 1.0),
        "transformer.ln_f.bias": vector(hidden, 0.0),
    }
    for layer in range(config["n_layer"]):
        prefix = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            weights[f"{prefix}{norm}.weight"] = vector(hidden, 1.0)
            weights[f"{prefix}{norm}.bias"] = vector(hidden, 0.0)
        for name, shape in (
            ("attn.c_attn", (hidden, 3 * hidden)),
            ("attn.c_proj", (hidden, hidden)),
            ("mlp.c_fc", (hidden, inner)),
            ("mlp.c_proj", (inner, hidden)),
        ):
            weights[f"{prefix}{name}.weight"] = matrix(*shape, 2.0, fan_in=shape[0])
            weights[f"{prefix}{name}.bias"] = vector(shape[1], 0.0)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden, 2.0)
    return weights


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[END_OF_TURN],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
