"""The tokenizer inside a GGUF file, as the tokenizer.json that the `tokenizers` library would have made. Torch-free.

Two kinds are known: "gpt2", byte-level BPE whose way of cutting text into words has a name (tokenizer.ggml.pre), and
"llama", sentencepiece's BPE, whose merges follow from the scores of its pieces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.engine.errors import ModelError
from quire.engine.gguf_file import GgufFile
from quire.engine.tokenizer_files import TokenizerFiles

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""
KINDS = ("gpt2", "llama")
OTHER_TOKENIZER = "give the folder of the model's own tokenizer.json with --tokenizer, or take another file"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MIXED_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"


@dataclass(frozen=True)
class Words:
    """How text is cut before the merges: by each of `cuts` in turn, then, with `gpt2`, by GPT-2's own rule."""

    cuts: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    """A word that is a token needs no merges (tokenizer.json's ignore_merges)."""
    composed: bool = False
    """Text is brought to Unicode's composed form (NFC) first."""
    begins: bool = False
    """A begin-of-sequence token comes first where the file does not say."""


_LLAMA3 = Words((rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}",), whole_words=True, begins=True)
_QWEN2 = Words((rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_OTHERS}",), composed=True)
_DIGITS = Words((r"\p{N}",), gpt2=True)
_GPT2 = Words(gpt2=True)
WORDS: dict[str, Words] = {
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+",), gpt2=True),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Words(_LLAMA3.cuts)),
    "qwen2": _QWEN2,
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), Words(_QWEN2.cuts)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    "deepseek-coder": Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "tekken": Words(
        (rf"{_MIXED_CASE}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
        whole_words=True,
        begins=True,
    ),
}
"""tokenizer.ggml.pre -> what it stands for, as llama.cpp has it (src/llama-vocab.cpp)."""


def read_gguf_tokenizer(path: Path, model_name: str) -> TokenizerFiles:
    """The file's tokenizer and chat templates. Raises ModelError where there is none, or none that is known (M17)."""
    with closing(GgufFile(path, model_name)) as file:
        tokens = _Tokens(file)
        build = _byte_level if tokens.kind == "gpt2" else _sentencepiece
        text = json.dumps(build(tokens), ensure_ascii=False)
        return TokenizerFiles(text, tokens.named, _templates(file), path.name, path.name)


class _Tokens:
    """The parts that both kinds have. `texts` and `types` by id; `named` the texts of bos_token, eos_token, ..."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.kind = self.text("model", "")
        if self.kind not in KINDS:
            what = "the tokenizer is unknown" if self.kind else "the tokenizer is missing"
            why = f"tokenizer.ggml.model is {self.kind!r:.80}, supported are {' and '.join(KINDS)}"
            raise self.fault(what, why)
        self.texts = file.strings("tokenizer.ggml.tokens")
        self.types = file.numbers("tokenizer.ggml.token_type") or [NORMAL] * len(self.texts)
        if not self.texts or len(self.types) != len(self.texts):
            why = f"{len(self.texts)} tokens with {len(self.types)} types"
            raise self.fault("the tokenizer is corrupt", why)
        self.ids = {
            text: i for i, (text, kind) in enumerate(zip(self.texts, self.types, strict=True)) if kind != UNUSED
        }
        if len(self.ids) + self.types.count(UNUSED) != len(self.texts):
            twice = next(text for i, text in enumerate(self.texts) if self.ids.get(text, i) != i)
            raise self.fault("the tokenizer is corrupt", f"the token {twice!r:.80} stands twice")
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
        found = {f"{name}_token": self.special(key) for name, key in names.items()}
        self.named = {name: text for name, text in found.items() if text is not None}

    def fault(self, what: str, why: str) -> ModelError:
        """A ModelError about the tokenizer."""
        return self.file.fault(what, why, OTHER_TOKENIZER)

    def text(self, name: str, default: str) -> str:
        """A string of the tokenizer's metadata."""
        value = self.file.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, str):
            raise self.file.fault("bad metadata", f"tokenizer.ggml.{name} is {value!r:.80}, expected a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A truth of the tokenizer's metadata."""
        value = self.file.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self.file.fault("bad metadata", f"tokenizer.ggml.{name} is {value!r:.80}, expected true or false")
        return value

    def special(self, name: str) -> str | None:
        """The text of the token that the metadata names by its id; None where that is no token's."""
        token_id = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token_id) is not int or not 0 <= token_id < len(self.texts) or self.types[token_id] == UNUSED:
            return None
        return self.texts[token_id]

    def added(self) -> list[dict[str, Any]]:
        """Control tokens, and those that users defined: found in a text before it is cut into words."""
        return [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for i, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind in (CONTROL, UNKNOWN, USER_DEFINED) and text
        ]

    def ends(self, begins: bool) -> dict[str, Any] | None:
        """The post-processor: what stands before and after a text. `begins` where the file does not say."""
        bos = self.named.get("bos_token") if self.flag("add_bos_token", begins) else None
        eos = self.named.get("eos_token") if self.flag("add_eos_token", False) else None
        if bos is None and eos is None:
            return None

        def piece(token: str | None) -> list[dict[str, Any]]:
            return [] if token is None else [{"SpecialToken": {"id": token, "type_id": 0}}]

        single = [*piece(bos), {"Sequence": {"id": "A", "type_id": 0}}, *piece(eos)]
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, *piece(bos), {"Sequence": {"id": "B", "type_id": 1}}, *piece(eos)],
            "special_tokens": {
                token: {"id": token, "ids": [self.ids[token]], "tokens": [token]}
                for token in (bos, eos)
                if token is not None
            },
        }


def _byte_level(tokens: _Tokens) -> dict[str, Any]:
    """tokenizer.json of byte-level BPE."""
    pre = tokens.text("pre", "default")
    words = WORDS.get(pre)
    if words is None:
        why = f"tokenizer.ggml.pre is {pre!r:.80}, supported are {', '.join(WORDS)}"
        raise tokens.fault("the tokenizer's way of cutting words is unknown", why)
    return {
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": {"type": "NFC"} if words.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _cuts(words)},
        "post_processor": tokens.ends(words.begins),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": words.whole_words,
            "vocab": tokens.ids,
            "merges": tokens.file.strings("tokenizer.ggml.merges"),
        },
    }


def _cuts(words: Words) -> Sequence[dict[str, Any]]:
    splits = [
        {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in words.cuts
    ]
    return [
        *splits,
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words.gpt2},
    ]


def _sentencepiece(tokens: _Tokens) -> dict[str, Any]:
    """tokenizer.json of sentencepiece's BPE: U+2581 for a space, bytes where no piece fits."""
    scores = tokens.file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens.texts):
        raise tokens.fault("the tokenizer is corrupt", f"{len(tokens.texts)} tokens with {len(scores)} scores")
    prefix = tokens.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    unknown = next((text for text, kind in zip(tokens.texts, tokens.types, strict=True) if kind == UNKNOWN), None)
    return {
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": "▁"}] if prefix else []), spaces],
        },
        "pre_tokenizer": None,
        "post_processor": tokens.ends(True),
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])],
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": tokens.ids,
            "merges": _merges(tokens, scores),
        },
    }


def _merges(tokens: _Tokens, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, the best-scored result first, as sentencepiece joins them."""
    pieces = {text: i for text, i in tokens.ids.items() if tokens.types[i] in (NORMAL, USER_DEFINED)}
    found = [
        (-scores[i], i, cut, text)
        for text, i in pieces.items()
        if tokens.types[i] == NORMAL
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    ]
    return [(text[:cut], text[cut:]) for _, _, cut, text in sorted(found)]


def _templates(file: GgufFile) -> dict[str, str]:
    """The chat templates by name."""
    start = "tokenizer.chat_template"
    found: dict[str, str] = {}
    for key, value in file.metadata.items():
        if key != start and not key.startswith(f"{start}."):
            continue
        if not isinstance(value, str):
            raise file.fault("bad metadata", f"{key} is {value!r:.80}, expected a string")
        found[key[len(start) + 1 :] or "default"] = value
    return found
