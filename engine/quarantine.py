"""Which requests may have killed an engine, and what happens when they come back. Pure.

A client's library sends a request again that was answered with 503, and so a request that kills the engine would kill
the next one too. Whoever was in the step under way when an engine died of its work is a suspect for ten minutes. A
suspect that comes back is computed alone (`Add.alone`, `quire.engine.apart`); an engine that dies again in a step of
that one request convicts it, and then it is refused. So it costs two restarts, and nobody else is ever refused.
"""

from __future__ import annotations

import hashlib

import msgspec

from quire.engine.messages import Add, Failure

QUARANTINE_SECONDS = 600.0
MAX_REMEMBERED = 4096
MARGIN_TOKENS = 2
"""A suspect stays alone for so many tokens beyond those it had when the engine died."""

CONVICTED = Failure(
    code="request_quarantined",
    message=(
        "the engine died twice while it computed this request, the second time alone; it is refused for ten minutes, "
        "and sending it again will not help"
    ),
)


class _Record(msgspec.Struct):
    """What is known about a fingerprint, until `expires` (monotonic seconds)."""

    expires: float
    num_tokens: int
    """It had when an engine died with it."""
    convicted: bool = False


class Quarantine:
    """Fingerprints of suspects and of the convicted. Requests are told apart by a keyed hash; no prompt is kept."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._records: dict[bytes, _Record] = {}
        self.num_convicted = 0
        """Requests found guilty since the start."""

    def __len__(self) -> int:
        return len(self._records)

    def admit(self, add: Add, now: float) -> Add | None:
        """The request as it may be sent: as it is, or alone; None when it is refused."""
        if not self._records:
            return add
        record = self._records.get(self._fingerprint(add))
        if record is None or record.expires <= now:
            return add
        if record.convicted:
            return None
        return msgspec.structs.replace(add, alone=record.num_tokens + MARGIN_TOKENS)

    def died(self, suspects: list[tuple[Add, int]], alone: bool, now: float) -> Add | None:
        """An engine died in a step of these requests, which had so many tokens; the one that is convicted, if any.

        `alone`: the step held one request.
        """
        self._records = {name: record for name, record in self._records.items() if record.expires > now}
        for add, num_tokens in suspects:
            name = self._fingerprint(add)
            again = self._records.pop(name, None)
            convicted = again is not None and alone
            self._records[name] = _Record(now + QUARANTINE_SECONDS, num_tokens, convicted)
            if convicted:
                self.num_convicted += 1
                return add
        while len(self._records) > MAX_REMEMBERED:
            del self._records[next(iter(self._records))]
        return None

    def _fingerprint(self, add: Add) -> bytes:
        """Of what the engine computes, whatever its seed: a client that sends it again draws another one."""
        digest = hashlib.blake2b(key=self._secret, digest_size=16)
        params = msgspec.msgpack.encode(msgspec.structs.replace(add.params, seed=None))
        for field in (add.key_id.encode("utf-8", "surrogatepass"), params, add.prompt_token_ids):
            digest.update(len(field).to_bytes(8, "little") + field)
        return digest.digest()
