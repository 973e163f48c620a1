"""Words that are one token each, so that a prompt has exactly as many tokens as it should: as ids, and as text.

A word with a space before it stays one token wherever it stands, because tokenizers split text at spaces first. Which
words those are, the server's own tokenizer says, or one on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quire.benchmarks.backends import Prompt

Encode = Callable[[str], Awaitable[list[int]]]
_FEWEST = 32
_AT_ONCE = 16

COMMON = """
the of and to in is was for that with his her they he she it you are as at be this have from or had by not but what
all were when we there can an your which their said if do will each about how up out them then many some so these
would other into has more two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never us
left """


class TooFewWords(ValueError):
    """A tokenizer that makes single tokens of hardly any word."""


@dataclass(frozen=True)
class Words:
    """`texts` begin with a space; `ids` are their tokens, or None where nobody can say: lengths are guesses then."""

    texts: tuple[str, ...]
    ids: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.texts)

    def prompt(self, numbers: Iterable[int], as_text: bool) -> Prompt:
        """The words of these numbers, as token ids where they are known and wanted."""
        if self.ids is None or as_text:
            return "".join(self.texts[number] for number in numbers)
        return tuple(self.ids[number] for number in numbers)


def guessed() -> Words:
    """For servers whose tokenizer nobody can ask: a common word is about one token."""
    return Words(tuple(f" {word}" for word in COMMON.split()), None)


async def learn(encode: Encode) -> Words:
    """The common words that `encode` (text to ids, without special tokens) makes one token of. Raises TooFewWords."""
    texts = list(dict.fromkeys(f" {word}" for word in COMMON.split()))
    gate = asyncio.Semaphore(_AT_ONCE)

    async def bounded(text: str) -> list[int]:
        async with gate:
            return await encode(text)

    encoded = await asyncio.gather(*(bounded(text) for text in texts))
    single = {ids[0]: text for text, ids in zip(texts, encoded, strict=True) if len(ids) == 1}
    if len(single) < _FEWEST:
        raise TooFewWords(f"only {len(single)} of {len(texts)} common words are one token")
    return Words(tuple(single.values()), tuple(single))


def local_encode(path: Path) -> Encode:
    """Of a model folder with tokenizer.json, or of that file. Raises FileNotFoundError."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a folder with tokenizer.json, or that file")
    tokenizer = Tokenizer.from_file(str(file))

    async def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode
