"""Tokenizers for tests: the starter model's, and small ones trained or built on the spot."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import quire.models.starter
from quire.engine.tokenizer import Tokenizer

STARTER = Path(quire.models.starter.__file__).parent


@functools.cache
def starter_tokenizer() -> Tokenizer:
    """Byte-level, with chat template and tools."""
    return Tokenizer.from_folder(STARTER, model_name="starter", check_template=False)


def sentencepiece_backend(*, strip: bool = True, metaspace: bool = False) -> Backend:
    """As Llama 2 and Mistral have it: U+2581 for spaces, `<0xNN>` for bytes, `<s>` and `</s>`."""
    words = [
        "▁",
        "▁the",
        "▁cat",
        "▁a",
        "a",
        "b",
        "c",
        "t",
        "he",
        "▁▁",
        "é",
        "[",
        "]",
        "IN",
        "ST",
        "/",
        "h",
        "e",
        "<",
        "s",
        ">",
    ]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *words]:
        vocab.setdefault(token, len(vocab))
    merges = [("h", "e")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single=["<s>:0", "$A:0"], special_tokens=[("<s>", 1)])
    return backend


def write_folder(folder: Path, backend: Backend, **config: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return folder
