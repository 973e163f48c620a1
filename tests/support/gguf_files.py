"""GGUF files of the tiny checkpoints, written as llama.cpp's converter would: its names, words and order of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType, TokenType
from safetensors.torch import load_file
from support.checkpoints import save_weights
from torch import Tensor

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "SmolLM3ForCausalLM": gguf.MODEL_ARCH.SMOLLM3,
    "GPT2LMHeadModel": gguf.MODEL_ARCH.GPT2,
}
Change = Callable[[gguf.GGUFWriter], None]


def write_gguf(
    folder: Path,
    path: Path,
    kind: str = "F32",
    *,
    pre: str = "gpt-2",
    change: Change = lambda writer: None,
    leave_out: tuple[str, ...] = (),
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    stored: dict[str, tuple[np.ndarray[Any, Any], GGMLQuantizationType]] | None = None,
) -> Path:
    """The model of `folder` as one file, its matrices in `kind`; `change` may add metadata.

    `extra` are tensors of plain numbers, `stored` such as are quantized already.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_sizes(writer, config)
    _add_tokenizer(writer, folder, config, pre)
    change(writer)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    names = gguf.get_tensor_name_map(architecture, layers)
    permuted = architecture in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.SMOLLM3)
    for name, tensor in load_file(folder / "model.safetensors").items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new_name is not None, name
        if new_name in leave_out:
            continue
        if architecture == gguf.MODEL_ARCH.GPT2 and tensor.dim() == 2 and name.split(".")[-2].startswith("c_"):
            tensor = tensor.T
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if permuted and f".{part}." in name:
                tensor = interleaved(tensor, config[heads])
        data = tensor.float().contiguous().numpy()
        as_kind = GGMLQuantizationType[kind if tensor.dim() == 2 else "F32"]
        if as_kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            writer.add_tensor(new_name, gguf.quants.quantize(data, as_kind), raw_dtype=as_kind)
        else:
            writer.add_tensor(new_name, data.astype(np.float16 if as_kind == GGMLQuantizationType.F16 else np.float32))
    for new_name, data in (extra or {}).items():
        writer.add_tensor(new_name, data)
    for new_name, (blocks, as_kind) in (stored or {}).items():
        writer.add_tensor(new_name, blocks, raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(folder: Path, target: Path, kind: str) -> Path:
    """The folder again, its matrices with the values that `kind` keeps of them, in float32."""
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    stored = GGMLQuantizationType[kind]
    weights = {}
    transposed = "GPT2" in (folder / "config.json").read_text()
    for name, tensor in load_file(folder / "model.safetensors").items():
        turn = transposed and tensor.dim() == 2 and name.split(".")[-2].startswith("c_")
        data = (tensor.T if turn else tensor).float().contiguous().numpy()
        if tensor.dim() == 2:
            data = gguf.quants.dequantize(gguf.quants.quantize(data, stored), stored)
        found = torch.from_numpy(data.copy())
        weights[name] = (found.T if turn else found).contiguous()
    save_weights(target, weights)
    return target


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of a head in the order 0, D/2, 1, D/2 + 1, ...: the two features that rotate together are neighbours."""
    size = len(rows) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[order]


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    if config["model_type"] == "gpt2":
        writer.add_block_count(config["n_layer"])
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], pre: str) -> None:
    """Byte-level BPE, as tokenizer.json of the folder has it."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    named = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([types.get(i, TokenType.UNUSED) for i in range(size)])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    ids = {text: token_id for token_id, text in tokens.items()}
    writer.add_eos_token_id(ids[named["eos_token"]])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
