"""Finds special-token text in a chat request and keeps it text. Pure; `quire.engine.tokenizer` says why and when."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))


class SpecialTextGuard:
    """For one set of special tokens, given by their texts."""

    def __init__(self, special_texts: Iterable[str]) -> None:
        longest_first = sorted(filter(None, special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def replace(self, value: Any) -> tuple[Any, dict[str, str]]:
        """`value` with every special-token text replaced by one private-use character, and what each stands for.

        Strings are searched one by one, and the text parts of one message's content joined, because templates write
        them without anything between. Nothing found: the value itself and {}.
        """
        if not any(self._special.search(text) for text in _texts(value)):
            return value, {}
        taken = set(chain.from_iterable(_texts(value)))
        free = (character for character in map(chr, chain(*_PRIVATE_USE)) if character not in taken)
        characters: dict[str, str] = {}
        replaced = self._walk(value, characters, free)
        return replaced, {character: text for text, character in characters.items()}

    def pieces(self, text: str, originals: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
        """`text` cut at its special tokens into (piece, False) for the plain path and (piece, True) for guarded text.

        A guarded piece has its original text back and no special token around it; neighbours of the plain path stay
        together.
        """
        marked = re.compile("|".join(map(re.escape, originals)))
        plain = ""
        start = 0
        for end, after in chain(((m.start(), m.end()) for m in self._special.finditer(text)), [(len(text), len(text))]):
            piece = text[start:end]
            if marked.search(piece):
                if plain:
                    yield plain, False
                yield marked.sub(lambda match: originals[match[0]], piece), True
                plain = ""
            else:
                plain += piece
            plain += text[end:after]
            start = after
        if plain:
            yield plain, False

    def _walk(self, value: Any, characters: dict[str, str], free: Iterator[str]) -> Any:
        def swap(text: str) -> str:
            if text not in characters:
                characters[text] = next(free)
            return characters[text]

        if isinstance(value, str):
            return self._special.sub(lambda match: swap(match[0]), value)
        if isinstance(value, Mapping):
            return {self._walk(k, characters, free): self._walk(v, characters, free) for k, v in value.items()}
        if isinstance(value, list | tuple):
            texts = _part_texts(value)
            if texts is None:
                return [self._walk(item, characters, free) for item in value]
            pieces = _replace_joined(self._special, texts, swap)
            return [
                piece if isinstance(part, str) else {**self._walk(part, characters, free), "text": piece}
                for part, piece in zip(value, pieces, strict=True)
            ]
        return value


def _texts(value: Any) -> Iterator[str]:
    """Every string in `value`, keys too, and the joined text parts of each list of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        texts = _part_texts(value)
        if texts is not None and len(texts) > 1:
            yield "".join(texts)
        for item in value:
            yield from _texts(item)


def _part_texts(value: list[Any] | tuple[Any, ...]) -> list[str] | None:
    """The texts of a list of content parts; None when it is another kind of list."""
    texts = [
        part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None for part in value
    ]
    return texts if texts and all(isinstance(text, str) for text in texts) else None  # type: ignore[return-value]


def _replace_joined(special: re.Pattern[str], texts: list[str], swap: Any) -> list[str]:
    """`texts` with the matches in their concatenation replaced, each part's share of a match by itself."""
    replaced: list[str] = []
    matches = [match.span() for match in special.finditer("".join(texts))]
    offset = 0
    for text in texts:
        piece, position = "", 0
        for start, end in matches:
            low, high = max(start - offset, 0), min(end - offset, len(text))
            if low < high:
                piece += text[position:low] + swap(text[low:high])
                position = high
        replaced.append(piece + text[position:])
        offset += len(text)
    return replaced
