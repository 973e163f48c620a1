"""What each token id stands for, in bytes, and how bytes become text.

Two kinds of vocabulary are known, told apart by the `decoder` of tokenizer.json:

- byte-level (GPT-2, 2019): each character of a token stands for one byte;
- sentencepiece-style: U+2581 stands for a space, `<0xNN>` for one byte, and the text's first space may be dropped.

The text of a list of ids is its bytes, joined, as UTF-8 with U+FFFD for what is none. So decoding needs no window over
earlier tokens: a stream keeps at most three bytes back, and cut anywhere it adds up to the whole.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Any

from quire.engine.errors import QuireError

_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class UnknownDecoder(QuireError):
    """tokenizer.json has a decoder that is neither byte-level nor sentencepiece-style."""


class Vocabulary:
    """Token id to bytes. `tokens` maps every id, added ones included, to its string in tokenizer.json."""

    def __init__(
        self, tokens: Mapping[int, str], special_ids: Iterable[int], decoder: Mapping[str, Any] | None
    ) -> None:
        steps = _decoder_steps(decoder)
        kinds = {step["type"] for step in steps}
        self.size = max(tokens, default=-1) + 1
        self.special_ids = frozenset(special_ids)
        self.byte_level = "ByteLevel" in kinds
        if self.byte_level and kinds <= {"ByteLevel", "Fuse"}:
            table = _byte_level_table()
            self._bytes = [_byte_level(tokens.get(i, ""), table) for i in range(self.size)]
        elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            byte_tokens = "ByteFallback" in kinds
            self._bytes = [_sentencepiece(tokens.get(i, ""), byte_tokens) for i in range(self.size)]
        else:
            raise UnknownDecoder(f"its decoder is {'+'.join(sorted(kinds)) or 'missing'}")
        self._drops_first_space = "Strip" in kinds or any(
            step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps
        )
        self.max_token_bytes = max(map(len, self._bytes), default=1)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; b"" for an id that is no token."""
        return self._bytes[token_id] if 0 <= token_id < self.size else b""

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool, continues: bool = False) -> str:
        """The text of `ids`; with `continues` they follow on other text, and a first space stays."""
        stream = TextStream(self, skip_special_tokens=skip_special_tokens, continues=continues)
        return stream.push(ids) + stream.flush()


class TextStream:
    """The text of one growing list of ids. The sum of all that `push` and `flush` return is the text of the list."""

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool, continues: bool) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._utf8 = _new_utf8_decoder(errors="replace")
        self._drop_space = vocabulary._drops_first_space and not continues

    def push(self, ids: Iterable[int]) -> str:
        """The characters that `ids` complete."""
        return self._trim(self._utf8.decode(b"".join([self._token_bytes(i) for i in ids if i not in self._skipped])))

    def flush(self) -> str:
        """The end of the list: U+FFFD for a character that was cut, once."""
        return self._trim(self._utf8.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]
    if decoder["type"] == "Replace" and (decoder["pattern"] != {"String": _SPACE} or decoder["content"] != " "):
        return [{"type": f"Replace({decoder['pattern']})"}]
    if decoder["type"] == "Strip" and (decoder["content"], decoder["start"], decoder["stop"]) != (" ", 1, 0):
        return [{"type": f"Strip({decoder['content']!r}, {decoder['start']}, {decoder['stop']})"}]
    if decoder["type"] == "Metaspace" and decoder.get("replacement", _SPACE) != _SPACE:
        return [{"type": f"Metaspace({decoder['replacement']!r})"}]
    return [decoder]


def _byte_level_table() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the others for U+0100 and up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str, table: Mapping[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # an added token, written as it is
        return token.encode("utf-8", "replace")


def _sentencepiece(token: str, byte_tokens: bool) -> bytes:
    match = _BYTE_TOKEN.match(token) if byte_tokens else None
    if match:
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode("utf-8", "replace")
