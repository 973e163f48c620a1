"""The source of chance, of names and of numbers; where training is kept apart from the held-out file.

A `World` for training never gives what `heldout.json` lists; one for testing gives nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeAlias, TypeVar

from quire.models.starter.data import words
from quire.models.starter.data.lists import terms

HELD_OUT_FILE = Path(__file__).parent.parent / "heldout.json"
ONSETS = terms("b bl br c ch cl d dr f fl g gl gr h j k kr l m n p pr qu r s sh sk sl st t th tr v w y z")
VOWELS = terms("a e i o u a e i o a ai ea ee ia oa ou")
CODAS = ["", "", "", "", "n", "l", "r", "s", "m", "th", "rk", "x", "d", "ck", "nd", "t"]
CITY_ENDINGS = ["ton", "ville", "burg", "ford", "stad", "mouth", "field", "haven", "by", "grad", "port", "wick", "dale"]
CITY_STARTS = ["New", "Port", "San", "Fort", "Lake", "Old", "Santa"]

T = TypeVar("T")
Message: TypeAlias = dict[str, Any]
Tool: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """What training must not show: the lists of `heldout.json`."""

    names: tuple[str, ...] = ()
    cities: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    tool_nouns: tuple[str, ...] = ()
    tool_attributes: tuple[str, ...] = ()
    tool_names: tuple[str, ...] = ()
    wordings: dict[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def held_out() -> HeldOut:
    """The committed held-out file's lists."""
    lists = json.loads(HELD_OUT_FILE.read_text())["lists"]
    return HeldOut(
        names=tuple(lists["names"]),
        cities=tuple(lists["cities"]),
        pairs=tuple((a, b) for a, b in lists["pairs"]),
        tool_nouns=tuple(lists["tool_nouns"]),
        tool_attributes=tuple(lists["tool_attributes"]),
        tool_names=tuple(lists["tool_names"]),
        wordings={family: tuple(wordings) for family, wordings in lists["wordings"].items()},
    )


class World:
    """Draws from a seeded generator; `testing` turns held-out items from forbidden to compulsory."""

    def __init__(self, rng: Random, held: HeldOut, testing: bool = False) -> None:
        self.rng = rng
        self.held = held
        self.testing = testing
        self.forbidden_words = {part for text in (*held.names, *held.cities) for part in text.split()}
        self.forbidden_pairs = set(held.pairs) | {(b, a) for a, b in held.pairs}

    def pick(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Distinct options, in random order."""
        return self.rng.sample(options, count)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def wording(self, family: str, training: Sequence[str]) -> str:
        """One way to ask: of the training list, or of the held-out list of that family."""
        return self.pick(self.held.wordings[family] if self.testing else training)

    def invented(self, low: int = 2, high: int = 3) -> str:
        """A made-up capitalised word of some syllables."""
        syllables = self.between(low, high)
        parts = [self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(syllables - 1)]
        word = "".join(parts) + self.pick(ONSETS) + self.pick("aeioaei") + self.pick(CODAS)
        return word.capitalize()

    def name(self) -> str:
        """A first name; half of training's are made up, so that names have to be copied."""
        if self.testing:
            return self.pick(self.held.names)
        while True:
            name = self.pick(words.FIRST_NAMES) if self.chance(0.45) else self.invented(1 if self.chance(0.2) else 2)
            if name not in self.forbidden_words and len(name) > 2:
                return name

    def city(self) -> str:
        if self.testing:
            return self.pick(self.held.cities)
        while True:
            kind = self.rng.random()
            if kind < 0.4:
                city = self.pick(words.CITIES)
            elif kind < 0.5:
                city = self.pick(words.TWO_WORD_CITIES)
            elif kind < 0.7:
                city = self.invented(2)
            elif kind < 0.93:
                city = self.invented(1, 2) + self.pick(CITY_ENDINGS)
            else:
                city = f"{self.pick(CITY_STARTS)} {self.invented(1, 2)}"
            if not self.forbidden_words & set(city.split()):
                return city

    def person(self) -> str:
        """A first name and a surname."""
        return f"{self.name()} {self.name()}"

    def operands(self) -> tuple[int, int]:
        """Two numbers from 10 to 99."""
        if self.testing:
            return self.pick(self.held.pairs)
        while True:
            pair = self.between(10, 99), self.between(10, 99)
            if pair not in self.forbidden_pairs:
                return pair

    def code(self) -> str:
        """An identifier such as B-4821 or 90313."""
        digits = "".join(self.pick("0123456789") for _ in range(self.between(3, 6)))
        letters = "".join(self.pick("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(self.between(0, 3)))
        return f"{letters}{self.pick(['-', '', '-'])}{digits}" if letters else digits


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
