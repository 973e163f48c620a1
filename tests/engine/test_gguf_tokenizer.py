"""A GGUF file's tokenizer gives the ids, texts and prompts of the tokenizer.json that it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import TokenType
from support.checkpoints import CHAT_TEMPLATE, tiny_checkpoint
from support.gguf_files import write_gguf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from quire.engine.chat_template import ChatTemplateError
from quire.engine.errors import ModelError
from quire.engine.gguf_tokenizer import WORDS
from quire.engine.tokenizer import Tokenizer as Served

TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n \t\t x\n",
    "Hello, world! How's it going? I'LL see; we've DONE it.",
    "  leading and trailing  ",
    "def main(argv: list[str]) -> int:\n    return {'a': [1, 2]}['a'][0] ** 2  # ok\n\n\tpass",
    "3 33 333 3333 33333 3.14159 1,000,000 2026-11-22 0x1F 1e-5 ٣٤ ½",
    "Äpfel Zürich naïve café cafe\u0301 Å A\u030a 東京は今日も晴れ。 Привет, мир! שלום مرحبا नमस्ते ภาษาไทย",
    "🙂 👩‍👩‍👧‍👦 🚀🚀 ✅ e🙂e",
    "a\u00a0b\u2003c\u200bd\r\ne\rf",
    "x" * 100 + " " * 17 + "y" + "=" * 33 + "...!!!???",
    "<|im_start|>user\nwhat is <|im_end|>?<|endoftext|>",
    "The<|im_end|> the <tool> tool</s>",
    "camelCaseWords and SCREAMING_SNAKE iPhone15Pro MixedUP",
)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{END}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{END}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def split(pattern: str) -> Any:
    """As the makers' tokenizer.json have it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def digits() -> Any:
    """As SmolLM's tokenizer.json has it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


ORIGINALS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen2": lambda: split(QWEN2),
    "llama-bpe": lambda: split(LLAMA3),
    "smollm": digits,
}


def trained(pre: str) -> Tokenizer:
    """A byte-level tokenizer that cuts words as `pre` does, trained on the texts."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = ORIGINALS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def write_tokenizer(path: Path, original: Tokenizer, pre: str, change: Callable[[gguf.GGUFWriter], None]) -> Path:
    """A file of a tokenizer alone."""
    state = json.loads(original.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    size = original.get_vocab_size() + 3
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([original.id_to_token(i) or f"[PAD{i}]" for i in range(size)])
    types = [TokenType.NORMAL] * (size - 3) + [TokenType.UNUSED] * 3
    for token_id, token in added.items():
        types[token_id] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def nothing(writer: gguf.GGUFWriter) -> None:
    """No more metadata."""


def open_tokenizer(path: Path, **options: Any) -> Served:
    return Served.from_folder(path, model_name="tiny", check_template=False, **options)


@pytest.mark.parametrize("pre", ORIGINALS)
def test_ids_equal_the_original_tokenizer(pre: str, tmp_path: Path) -> None:
    original = trained(pre)
    served = open_tokenizer(write_tokenizer(tmp_path / "m.gguf", original, pre, nothing))
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert served.encode(text, add_special_tokens=False) == ids
        assert served.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)
    assert served.special_tokens == {text: original.token_to_id(text) for text in SPECIAL}
    assert served.vocab_size == original.get_vocab_size(), "what is only there to fill up is no token"


def test_every_way_of_cutting_words_can_be_built(tmp_path: Path) -> None:
    original = trained("gpt-2")
    for pre in ("", *WORDS):
        served = open_tokenizer(write_tokenizer(tmp_path / "m.gguf", original, pre, nothing))
        for text in TEXTS:
            ids = served.encode(text, add_special_tokens=False)
            assert served.decode(ids, skip_special_tokens=False) in (text, text.replace("e\u0301", "é"), composed(text))


def composed(text: str) -> str:
    return str(normalizers.NFC().normalize_str(text))


@pytest.mark.parametrize(
    ("pre", "said", "expected"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("gpt-2", None, False),
        ("gpt-2", True, True),
    ],
)
def test_the_beginning_of_a_sequence(pre: str, said: bool | None, expected: bool, tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        if said is not None:
            writer.add_add_bos_token(said)

    served = open_tokenizer(write_tokenizer(tmp_path / "m.gguf", trained(pre), pre, change))
    plain = served.encode("The end", add_special_tokens=False)
    assert served.encode("The end") == [1] * expected + plain
    assert (served.bos_token_id, served.eos_token_id, served.eos_token_ids) == (1, 2, frozenset({2}))


def test_the_end_of_a_sequence(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_eos_token_id(2)
        writer.add_add_eos_token(True)

    served = open_tokenizer(write_tokenizer(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", change))
    assert served.encode("The end") == [*served.encode("The end", add_special_tokens=False), 2]


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it, trained on the texts."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [text.replace(" ", " ▁").split() for text in TEXTS if "<" not in text]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((word for line in words for word in line), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token | {"normalized": False} for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(state))


def test_sentencepiece_ids_equal_the_original_tokenizer(tmp_path: Path) -> None:
    original = sentencepiece()
    state = json.loads(original.to_str())
    order = {"".join(merge): -float(rank) for rank, merge in enumerate(state["model"]["merges"])}
    size = original.get_vocab_size()
    texts = [original.id_to_token(i) for i in range(size)]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([order.get(text, -1e6) for text in texts])
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types(types + [TokenType.NORMAL] * (size - len(types)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    served = open_tokenizer(tmp_path / "m.gguf")
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert served.encode(text, add_special_tokens=False) == ids
        assert served.encode(text) == [1, *ids]
        assert served.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


MESSAGES: Sequence[dict[str, Any]] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <|im_end|> in Zürich?\n"},
)


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"tools": [{"name": "look"}]}])
def test_chats_are_rendered_as_from_the_folder(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=1)
    path = write_gguf(folder, tmp_path / "m.gguf")
    served, expected = open_tokenizer(path), open_tokenizer(folder)
    assert served.render_chat(MESSAGES, **options) == expected.render_chat(MESSAGES, **options)
    assert served.encode_chat(MESSAGES, **options) == expected.encode_chat(MESSAGES, **options)
    for text in TEXTS:
        assert served.encode(text) == expected.encode(text)


def test_named_templates_and_none(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])

    served = open_tokenizer(write_tokenizer(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", change))
    assert served.render_chat(MESSAGES) == "plain"
    assert served.render_chat(MESSAGES, tools=[{"name": "look"}]) == "tools"
    bare = open_tokenizer(write_tokenizer(tmp_path / "bare.gguf", trained("gpt-2"), "gpt-2", nothing))
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        bare.render_chat(MESSAGES)


def test_the_operators_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("mine")
    path = write_tokenizer(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", lambda w: w.add_chat_template(CHAT_TEMPLATE))
    assert open_tokenizer(path, chat_template=tmp_path / "mine.jinja").render_chat(MESSAGES) == "mine"


def keys(**values: Any) -> Callable[[gguf.GGUFWriter], None]:
    """Writes tokenizer.ggml.* anew."""

    def change(writer: gguf.GGUFWriter) -> None:
        for name, value in values.items():
            key = "tokenizer.chat_template" if name == "template" else f"tokenizer.ggml.{name}"
            for part in writer.kv_data:
                part.pop(key, None)
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif value is not None:
                writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keys(model=None), "the tokenizer is missing .*tokenizer.ggml.model is '', supported are gpt2 and llama"),
        (keys(model="bert"), "the tokenizer is unknown .*'bert'.*fix: give the folder of the model's own"),
        (keys(pre="new-2027"), "way of cutting words is unknown .*'new-2027', supported are default, gpt-2"),
        (keys(pre=7), "tokenizer.ggml.pre is 7, expected a string"),
        (keys(tokens=None), r"the tokenizer is corrupt .*0 tokens with \d+ types"),
        (keys(token_type=[1, 1]), r"the tokenizer is corrupt .*\d+ tokens with 2 types"),
        (keys(tokens=["a", "b", "a"], token_type=[1, 1, 1]), "the token 'a' stands twice"),
        (keys(merges=["never seen"]), r"the tokenizer is corrupt \(m.gguf\)"),
        (keys(add_bos_token="yes"), "add_bos_token is 'yes', expected true or false"),
        (keys(template=5), "tokenizer.chat_template is 5, expected a string"),
        (keys(template="{% if %}"), r"the chat template is broken \(m.gguf\): line 1"),
        (keys(model="llama"), r"\d+ tokens with 0 scores"),
    ],
)
def test_tokenizers_that_cannot_be_served(
    change: Callable[[gguf.GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    path = write_tokenizer(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", change)
    with pytest.raises(ModelError, match=message) as caught:
        open_tokenizer(path)
    assert "(m.gguf)" in str(caught.value)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "m.gguf", trained("gpt-2"), "gpt-2", nothing)
    with pytest.raises(ModelError, match=r"does not belong to the model \(m.gguf\): .*the model has 100 rows"):
        open_tokenizer(path, model_vocab_size=100)
