"""What a model says of itself, wherever it lies: in a folder of Hugging Face's form, or in one GGUF file. Torch-free.

A model's path is either; the tokenizer (`Tokenizer.from_folder`) and the weights (`load_model`) are told apart alike.
"""

from __future__ import annotations

from pathlib import Path

from quire.engine.gguf_config import read_gguf_config, read_gguf_defaults
from quire.engine.gguf_file import is_gguf
from quire.engine.model_folder import GenerationDefaults, read_generation_config
from quire.engine.models.architectures import read_model_config
from quire.engine.models.config import ModelConfig


def read_config(path: Path, model_name: str) -> ModelConfig:
    """The model's config, checked. Raises ModelError as `read_model_config` and `read_gguf_config` do."""
    return read_gguf_config(path, model_name) if is_gguf(path) else read_model_config(path, model_name)


def read_defaults(path: Path, model_name: str) -> GenerationDefaults:
    """How the model's makers want it sampled. Raises ModelError when what they say is bad."""
    return read_gguf_defaults(path, model_name) if is_gguf(path) else read_generation_config(path, model_name)
