"""Bytes of tokens and the text of id lists, against the tokenizers library's own decoder."""

import random

import pytest
from support.tokenizers import sentencepiece_backend, starter_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from quire.engine.vocabulary import UnknownDecoder, Vocabulary


def vocabulary_of(backend: Backend) -> Vocabulary:
    import json

    added = backend.get_added_tokens_decoder()
    tokens = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    return Vocabulary(tokens, [i for i, t in added.items() if t.special], json.loads(backend.to_str())["decoder"])


def test_byte_level_equals_the_library_for_any_ids() -> None:
    backend = Backend.from_str(starter_tokenizer().files.json)
    vocabulary = vocabulary_of(backend)
    random_ = random.Random(3)
    for _ in range(2000):
        ids = [random_.randrange(vocabulary.size) for _ in range(random_.randrange(40))]
        for skip in (True, False):
            assert vocabulary.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("options", [{}, {"strip": False}, {"metaspace": True}])
def test_sentencepiece_style_equals_the_library_for_valid_bytes(options: dict[str, bool]) -> None:
    backend = sentencepiece_backend(**options)
    vocabulary = vocabulary_of(backend)
    random_ = random.Random(4)
    words = ["the", "cat", " ", "é", "🎉", "日本", "a b", "  x", "</s>", "\n"]
    for _ in range(2000):
        text = "".join(random_.choice(words) for _ in range(random_.randrange(1, 12)))
        ids = backend.encode(text, add_special_tokens=False).ids
        for skip in (True, False):
            ours = vocabulary.decode(ids, skip_special_tokens=skip)
            theirs = backend.decode(ids, skip_special_tokens=skip)
            assert ours == theirs or (options.get("metaspace") and ours.lstrip(" ") == theirs.lstrip(" ")), text


def test_valid_bytes_never_become_replacement_characters() -> None:
    """A broken byte beside a whole character costs only itself."""
    vocabulary = vocabulary_of(sentencepiece_backend())
    ids = [3 + byte for byte in [*"é".encode(), 0xFF, *"€".encode()]]
    assert vocabulary.decode(ids, skip_special_tokens=True) == "é\ufffd€"


def test_ids_outside_and_sizes() -> None:
    vocabulary = starter_tokenizer().vocabulary
    assert vocabulary.token_bytes(-1) == vocabulary.token_bytes(vocabulary.size) == b""
    assert vocabulary.max_token_bytes == max(len(vocabulary.token_bytes(i)) for i in range(vocabulary.size))


def test_an_unknown_decoder_is_refused_by_name() -> None:
    backend = sentencepiece_backend()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnknownDecoder, match="WordPiece"):
        vocabulary_of(backend)
