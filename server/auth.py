"""Who is calling: keys are compared by their SHA-256 digests, in time that does not depend on where they differ."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from quire.server.api_keys import ApiKey
from quire.server.errors import ApiError
from quire.server.key_limits import KeyLimits

MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class Caller:
    """Whose request it is. `key_id` is no secret; empty when the server has no keys."""

    key_id: str = ""
    weight: float = 1.0
    """Of the key, beside others under fair scheduling."""
    admin: bool = True
    """Without keys everybody is."""


class KeyRing:
    """The keys that are accepted; without any, everybody is."""

    def __init__(self, keys: Iterable[ApiKey], today: Callable[[], date] = lambda: datetime.now(UTC).date()) -> None:
        self._keys, self._today = tuple(keys), today
        self._secret = secrets.token_bytes(32)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def limits(self) -> dict[str, KeyLimits]:
        """What each key may use, by its id."""
        return {key.key_id: key.limits for key in self._keys}

    def identify(self, authorization: bytes | None) -> Caller:
        """The caller with this Authorization header. Raises invalid_api_key, with the same text for every reason, and
        api_key_disabled for a key that was one once."""
        if not self._keys:
            return Caller()
        scheme, _, presented = (authorization or b"").partition(b" ")
        presented = presented.strip()
        digest = hashlib.sha256(presented[:MAX_KEY_BYTES]).digest()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None or scheme.lower() != b"bearer" or not 0 < len(presented) <= MAX_KEY_BYTES:
            raise ApiError(
                "invalid_api_key",
                "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
                headers=(("www-authenticate", "Bearer"),),
                close=True,
            )
        if not found.standing.is_valid(self._today()):
            text = "This API key is disabled or has expired; ask whoever gave it to you for another."
            raise ApiError("api_key_disabled", text, headers=(("www-authenticate", "Bearer"),), close=True)
        return Caller(found.key_id, found.limits.weight, found.standing.admin)

    def salt(self, caller: Caller, cache_salt: str | None) -> bytes:
        """What separates this caller's blocks in the prefix cache: its key, and the salt it asked for.

        Keyed by a secret of this process, so that nobody can aim at another's salt. Empty, which shares with every
        other empty one, only without keys and without `cache_salt`.
        """
        if not caller.key_id and cache_salt is None:
            return b""
        digest = hashlib.blake2b(key=self._secret, digest_size=16)
        for field in (caller.key_id, cache_salt or ""):
            data = field.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(4, "little") + data)
        return digest.digest()
