"""The bench shape: Qwen3-0.6B's layers with a tied vocabulary of 32,000, 473 M parameters, random weights.

`python -m quire.benchmarks.bench_model` writes it once as a Hugging Face folder, and with `--gguf` as GGUF files beside
it (BF16, Q8_0, Q4_0; every matrix, the embedding included) for servers that read those. Speed does not depend on what
the weights say; nobody needs a download. The tokenizer is trained on the text of Python's own library, and a special
token ends nothing: nobody predicts one on purpose.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SHAPE: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GGUF_TYPES = ("BF16", "Q8_0", "Q4_0")
_CORPUS_BYTES = 24_000_000


def default_folder() -> Path:
    """Outside every repository: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "bench-model"


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names and their shapes."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "self_attn.q_norm": (dim,),
        "self_attn.k_norm": (dim,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,)}


def weight_bytes(config: Mapping[str, Any] = SHAPE, bytes_per_weight: float = 2.0) -> float:
    """What one decode step reads of the weights; the tied embedding counts once, as the LM head."""
    return bytes_per_weight * sum(math.prod(shape) for shape in weight_shapes(config).values())


def write_model(folder: Path, config: Mapping[str, Any] = SHAPE) -> Path:
    """A Hugging Face folder; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        "config.json": dict(config),
        "generation_config.json": {"eos_token_id": config["eos_token_id"], "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    if not (folder / "tokenizer.json").exists():
        _train_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    if not (folder / "model.safetensors").exists():
        tensors = {name: _weight(name, shape, config) for name, shape in weight_shapes(config).items()}
        partial = folder / "model.safetensors.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / "model.safetensors")
    return folder


def _weight(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Tensor:
    """Ones for norms, else normal; each tensor from a seed of its own name."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator) * float(config["initializer_range"])
    return values.to(torch.bfloat16)


def _train_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly `vocab_size` entries. Raises RuntimeError where the text gives fewer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise RuntimeError(f"expected a vocabulary of {vocab_size}, the text gives {tokenizer.get_vocab_size()}")
    return tokenizer


def _texts() -> Iterator[str]:
    left = _CORPUS_BYTES
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if left <= 0:
            return
        if "site-packages" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="replace")
            left -= len(text)
            yield text


def write_gguf(folder: Path, kind: str) -> Path:
    """The model of `folder` as `<folder>/model-<kind>.gguf`; what is there already stays.

    kind is one of GGUF_TYPES. Needs the `gguf` package.
    """
    path = folder / f"model-{kind}.gguf"
    if path.exists():
        return path
    import gguf

    config = json.loads((folder / "config.json").read_text())
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    writer.add_name("bench shape")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, folder, config)
    quantized = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), values)
        else:
            data = gguf.quants.quantize(values, quantized)
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(data), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


def _add_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = sorted(found["vocab"], key=found["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    normal, control = 1, 3
    writer.add_token_types([control if token in SPECIAL else normal for token in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in found["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def main(argv: list[str] | None = None) -> int:
    """Write what is not there yet, and print the paths."""
    parser = argparse.ArgumentParser(prog="quire.benchmarks.bench_model", description="The model of the comparisons.")
    parser.add_argument("--folder", type=Path, default=default_folder(), metavar="DIR", help="[the user's cache]")
    parser.add_argument("--gguf", nargs="*", choices=GGUF_TYPES, metavar="TYPE", help=f"[all: {', '.join(GGUF_TYPES)}]")
    options = parser.parse_args(argv)
    print(write_model(options.folder))
    for kind in () if options.gguf is None else options.gguf or GGUF_TYPES:
        print(write_gguf(options.folder, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
