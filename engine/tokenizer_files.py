"""Reads the tokenizer's files of a model folder into values, and refuses what cannot be served. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quire.engine.errors import ModelError

MAX_CONFIG_BYTES = 4 << 20
MAX_TOKENIZER_BYTES = 256 << 20
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFiles(msgspec.Struct, frozen=True):
    """What tokenizer.json, tokenizer_config.json and the template files say."""

    json: str
    """tokenizer.json. Its post-processor decides what encoding adds; add_bos_token is read by nobody any more."""
    special_tokens: dict[str, str]
    """bos_token, eos_token, ... by name."""
    templates: dict[str, str]
    """Chat templates by name; "default" is the one for everything without a better one."""
    template_file: str
    """Where the default template came from, for messages."""
    file: str = "tokenizer.json"
    """Where `json` came from, for messages."""


def read_tokenizer_files(folder: Path, model_name: str) -> TokenizerFiles:
    """Raises ModelError when tokenizer.json is missing or a configuration file is no JSON object."""
    data = _read(folder / "tokenizer.json", model_name, MAX_TOKENIZER_BYTES)
    if data is None:
        fix = "copy tokenizer.json into the folder (transformers' save_pretrained of a fast tokenizer writes it)"
        raise ModelError(model_name, "the tokenizer is missing", "tokenizer.json", "no such file", fix)
    config = _read_object(folder / "tokenizer_config.json", model_name)
    special_tokens = _special_tokens(_read_object(folder / "special_tokens_map.json", model_name)) | _special_tokens(
        config
    )
    templates, template_file = _templates(folder, model_name, config)
    return TokenizerFiles(data.decode(errors="replace"), special_tokens, templates, template_file)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _templates(folder: Path, model_name: str, config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The folder's templates: chat_template.jinja, else chat_template.json, else tokenizer_config.json."""
    named: dict[str, str] = {}
    file = "tokenizer_config.json"
    value = config.get("chat_template")
    if (folder / "chat_template.json").is_file():
        value = _read_object(folder / "chat_template.json", model_name).get("chat_template", value)
        file = "chat_template.json"
    if isinstance(value, str):
        named["default"] = value
    elif isinstance(value, list):
        named |= {entry["name"]: entry["template"] for entry in value if isinstance(entry, dict)}
    elif isinstance(value, dict):
        named |= value
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = _read_text(path, model_name)
    if (folder / "chat_template.jinja").is_file():
        file = "chat_template.jinja"
        named["default"] = _read_text(folder / file, model_name)
    for name, source in named.items():
        if not isinstance(source, str):
            raise ModelError(model_name, f"chat template {name!r} is no text", file, type(source).__name__, "mend it")
    return named, file


def _read_text(path: Path, model_name: str) -> str:
    data = _read(path, model_name, MAX_CONFIG_BYTES) or b""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(model_name, "the file is not UTF-8", path.name, str(error), "save it as UTF-8") from error


def _read_object(path: Path, model_name: str) -> dict[str, Any]:
    data = _read(path, model_name, MAX_CONFIG_BYTES)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ModelError(model_name, "the file is no JSON", path.name, str(error), "fetch the file again") from error
    if not isinstance(value, dict):
        why = f"found a {type(value).__name__}, expected an object"
        raise ModelError(model_name, "the file is no JSON object", path.name, why, "fetch the file again")
    return value


def _read(path: Path, model_name: str, limit: int) -> bytes | None:
    """The file's bytes; None when there is no such file."""
    try:
        size = path.stat().st_size
        if size > limit:
            why = f"{size} bytes, and the limit is {limit}"
            raise ModelError(model_name, "the file is too large", path.name, why, "fetch the file again")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelError(model_name, "the file cannot be read", path.name, why, "check its permissions") from error
