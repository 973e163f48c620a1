"""API keys: read once, kept as SHA-256 digests, never printed."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import UsageError

MIN_LENGTH = 16


@dataclass(frozen=True)
class ApiKey:
    """Who a key belongs to (`key_id`, no secret), and the SHA-256 digest of its UTF-8 bytes."""

    key_id: str
    digest: bytes


def read_api_keys(keys: Sequence[str], key_file: str | None) -> tuple[ApiKey, ...]:
    """The keys given directly and those of the file: one a line, `name key` or `key`, # begins a comment line.

    A key without a name is called after its digest. Raises UsageError for a file that is missing, empty or readable
    by others, for a name or a key that stands twice, and for a key under 16 characters; no message holds key text.
    """
    entries = [("API key", None, key) for key in keys] + (_read_file(key_file) if key_file is not None else [])
    found: dict[str, ApiKey] = {}
    digests: dict[bytes, str] = {}
    for place, name, key in entries:
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
        found[key_id] = ApiKey(key_id, digest)
        digests[digest] = place
    return tuple(found.values())


def _read_file(key_file: str) -> list[tuple[str, str | None, str]]:
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
    entries: list[tuple[str, str | None, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise UsageError(f"--api-key-file {path} line {number}: expected `name key` or `key`, found more words")
        entries.append((f"--api-key-file {path} line {number}", words[0] if len(words) == 2 else None, words[-1]))
    if not entries:
        raise UsageError(f"--api-key-file {path}: holds no key; one `name key` or `key` a line is expected")
    return entries
