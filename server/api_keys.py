"""API keys: read once, kept as SHA-256 digests, never printed."""

from __future__ import annotations

import hashlib
import itertools
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from quire.engine.errors import UsageError
from quire.server.key_limits import KeyLimits
from quire.server.parsing import parse_size

MIN_LENGTH = 16
LIMITS = ("requests-per-minute", "tokens-per-minute", "parallel", "weight")
STANDING = ("role", "expires", "disabled")


class Standing(NamedTuple):
    """What a key may do at all, and until when."""

    admin: bool = False
    """May also see what concerns everybody: the block pool, the flight recorder."""
    expires: date | None = None
    """Its first day without use, in UTC."""
    disabled: bool = False

    def is_valid(self, today: date) -> bool:
        """Whether it opens anything today."""
        return not self.disabled and (self.expires is None or today < self.expires)


@dataclass(frozen=True)
class ApiKey:
    """Who a key belongs to (`key_id`, no secret), the SHA-256 digest of its UTF-8 bytes, and what it may use."""

    key_id: str
    digest: bytes
    limits: KeyLimits
    standing: Standing


class _Entry(NamedTuple):
    """A key as it was given, and where."""

    place: str
    name: str | None
    key: str
    limits: KeyLimits
    standing: Standing


def read_api_keys(keys: Sequence[str], key_file: str | None) -> tuple[ApiKey, ...]:
    """The keys given directly and those of the file: one a line, `name key` or `key`, # begins a comment line.

    After the key there may be limits, as `requests-per-minute=60`, and `role=admin`, `expires=2027-01-31` or
    `disabled=yes`. A key without a name is called after its digest. Where there is one key and it is not said whose,
    it is the operator's own, and so an admin's. Raises UsageError for a file that is missing, empty or readable
    by others, for a name or a key that stands twice, and for a key under 16 characters; no message holds key text.
    """
    entries = [_Entry("API key", None, key, KeyLimits(), Standing()) for key in keys]
    entries += _read_file(key_file) if key_file is not None else []
    found: dict[str, ApiKey] = {}
    digests: dict[bytes, str] = {}
    for place, name, key, limits, standing in entries:
        if len(key) < MIN_LENGTH:
            raise UsageError(
                f"{place}: a key of {len(key)} characters; expected at least {MIN_LENGTH} "
                f"(python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
            )
        digest = hashlib.sha256(key.encode()).digest()
        key_id = name or f"key-{digest.hex()[:8]}"
        if digest in digests:
            raise UsageError(f"{place}: the same key as {digests[digest]}; give each caller a key of its own")
        if key_id in found:
            raise UsageError(f"{place}: the name {key_id} stands twice; give each key a name of its own")
        alone = len(entries) == 1
        found[key_id] = ApiKey(key_id, digest, limits, standing._replace(admin=standing.admin or alone))
        digests[digest] = place
    return tuple(found.values())


def _read_file(key_file: str) -> list[_Entry]:
    path = Path(key_file)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--api-key-file {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file {path}: not UTF-8") from None
    if mode & stat.S_IRWXO:
        raise UsageError(
            f"--api-key-file {path}: everybody on this machine can reach it (mode {stat.S_IMODE(mode):o}); chmod 600 it"
        )
    entries: list[_Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"--api-key-file {path} line {number}"
        given = list(itertools.takewhile(lambda word: word.partition("=")[0] in (*LIMITS, *STANDING), reversed(words)))
        names = words[: len(words) - len(given)]
        if not 1 <= len(names) <= 2:
            raise UsageError(
                f"{place}: expected `name key` or `key`, and what it may do after it "
                f"({'=, '.join((*LIMITS, *STANDING))}=), found other words"
            )
        entries.append(
            _Entry(
                place,
                names[0] if len(names) == 2 else None,
                names[-1],
                _read_limits(place, _named(LIMITS, given)),
                _read_standing(place, _named(STANDING, given)),
            )
        )
    if not entries:
        raise UsageError(f"--api-key-file {path}: holds no key; one `name key` or `key` a line is expected")
    return entries


def _named(names: Sequence[str], words: Sequence[str]) -> list[str]:
    return [word for word in words if word.partition("=")[0] in names]


def _read_standing(place: str, words: Sequence[str]) -> Standing:
    """`name=value` each; raises UsageError for a value that is none, and for a name that stands twice."""
    standing = Standing()
    for number, word in enumerate(words):
        name, _, text = word.partition("=")
        if name in [other.partition("=")[0] for other in words[:number]]:
            raise UsageError(f"{place}: {name} stands twice")
        if (name, text) == ("role", "admin"):
            standing = standing._replace(admin=True)
        elif (name, text) == ("disabled", "yes"):
            standing = standing._replace(disabled=True)
        elif name == "expires":
            try:
                standing = standing._replace(expires=date.fromisoformat(text))
            except ValueError:
                raise UsageError(f"{place}: {name}={text[:32]}: expected a date such as 2027-01-31") from None
        else:
            expected = "role=admin" if name == "role" else "disabled=yes"
            raise UsageError(f"{place}: {name}={text[:32]}: expected {expected}, or nothing")
    return standing


def _read_limits(place: str, words: Sequence[str]) -> KeyLimits:
    """`name=value` each; raises UsageError for a value that is no positive number, and for a name that stands twice."""
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            value = float(text) if name == "weight" else parse_size(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            kind = "number" if name == "weight" else "whole number"
            raise UsageError(f"{place}: {name}={text[:32]}: expected a {kind} of more than 0")
        if name in values:
            raise UsageError(f"{place}: {name} stands twice")
        values[name] = value
    return KeyLimits(**{name.replace("-", "_"): value for name, value in values.items()})  # type: ignore[arg-type]
