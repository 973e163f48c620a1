"""Write the Hugging Face folder from a training checkpoint: `python -m quire.models.starter.export "
"models/starter/checkpoint`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from quire.models.starter.model import Shape
from quire.models.starter.rendering import FOLDER, token_id

MAX_BYTES = 16_000_000
SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.9}


def config(shape: Shape, end: int, padding: int) -> dict[str, object]:
    """The model's config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "initializer_range": 0.02,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.num_layers,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": padding,
        "torch_dtype": "bfloat16",
    }


def export(checkpoint: Path, folder: Path) -> None:
    """Round a checkpoint's weights to bfloat16 and write them with their configuration."""
    state = load_file(checkpoint / "state.safetensors")
    weights = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items() if name.startswith("model.")
    }
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} the starter model may have"
        )
    shape = Shape(**json.loads((checkpoint / "shape.json").read_text()))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, padding = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
    generation = {"eos_token_id": [end, padding], "pad_token_id": padding, **SAMPLING}
    (folder / "config.json").write_text(json.dumps(config(shape, end, padding), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER)
