"""The prefix index: which block holds the keys and values of which prefix.

A full block is named by a hash chain: its hash covers its parent's hash, its own token ids, and everything else that
changes keys and values. The hash is keyed (BLAKE2b, RFC 7693) with a secret of this process, so that nobody can
construct a collision, and every field is tagged and length-prefixed, so that no two different field lists encode alike.
A hit is still compared token by token along the chain: a collision costs a miss, never a wrong answer.

Each cache group has blocks of its own for the same tokens: a key is made once, and found under (hash, group).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ids
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

_PARENT, _TOKEN_IDS, _EMBEDDINGS, _ADAPTER_EPOCH, _MODEL_EPOCH, _SALT = range(6)
_HEADER = Struct("<BI")


class Scope(NamedTuple):
    """What must be equal, beside the token ids, before two sequences may share a block."""

    salt: bytes = b""
    adapter_epoch: int = 0
    model_epoch: int = 0


def _field(tag: int, data: bytes) -> bytes:
    return _HEADER.pack(tag, len(data)) + data


_NO_EMBEDDINGS = _field(_EMBEDDINGS, b"")


@lru_cache(maxsize=1024)
def _scope_fields(scope: Scope) -> bytes:
    return (
        _field(_ADAPTER_EPOCH, scope.adapter_epoch.to_bytes(8, "little"))
        + _field(_MODEL_EPOCH, scope.model_epoch.to_bytes(8, "little"))
        + _field(_SALT, scope.salt)
    )


class BlockKey:
    """The identity of one full block: its token ids at the end of its parent's prefix, within a scope."""

    __slots__ = ("hash", "parent", "scope", "token_ids")

    def __init__(self, hash: bytes, parent: BlockKey | None, token_ids: bytes, scope: Scope) -> None:
        self.hash, self.parent, self.token_ids, self.scope = hash, parent, token_ids, scope

    def same_prefix(self, other: BlockKey) -> bool:
        """Whether both name the same content, compared field by field up to the first common ancestor."""
        mine: BlockKey | None = self
        theirs: BlockKey | None = other
        while mine is not theirs:
            if mine is None or theirs is None or mine.token_ids != theirs.token_ids or mine.scope != theirs.scope:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


class PrefixIndex:
    """Block hash -> block id, for blocks whose content is complete and committed.

    `secret` keys the hash (at most 64 bytes); `hash_bits` cuts it (tests use 6 bits to see collisions).
    """

    def __init__(self, secret: bytes = b"", hash_bits: int = 128) -> None:
        self._keyed = blake2b(digest_size=16, key=secret, person=b"quire block")
        self._mask = (1 << hash_bits) - 1
        self._cuts = hash_bits < 128
        self._blocks: dict[tuple[bytes, int], tuple[BlockKey, int]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def key(self, parent: BlockKey | None, token_ids: Ids[int], scope: Scope, embeddings: bytes = b"") -> BlockKey:
        """The key of the full block with `token_ids` after `parent` (None: at the start of the sequence).

        `embeddings` is the digest of every embedding that overrides a row of the block; empty for text.
        """
        ids = array("i", token_ids).tobytes()
        encoded = (
            _field(_PARENT, b"" if parent is None else parent.hash)
            + _field(_TOKEN_IDS, ids)
            + (_field(_EMBEDDINGS, embeddings) if embeddings else _NO_EMBEDDINGS)
            + _scope_fields(scope)
        )
        state = self._keyed.copy()
        state.update(encoded)
        digest = state.digest()
        if self._cuts:
            digest = (int.from_bytes(digest, "little") & self._mask).to_bytes(16, "little")
        return BlockKey(digest, parent, ids, scope)

    def find(self, key: BlockKey, group: int = 0) -> int | None:
        """The block of the cache group that holds exactly this prefix, or None."""
        entry = self._blocks.get((key.hash, group))
        if entry is None or not entry[0].same_prefix(key):
            return None
        # From now on both chains have this ancestor in common, so the next block's comparison ends here.
        key.parent = entry[0].parent
        return entry[1]

    def put(self, key: BlockKey, block_id: int, group: int = 0) -> bool:
        """Make `block_id` the group's holder of `key`; False when the hash is taken, and the block stays private."""
        return self._blocks.setdefault((key.hash, group), (key, block_id))[1] == block_id

    def drop(self, key: BlockKey, group: int = 0) -> None:
        """Forget the group's holder of `key`; KeyError when there is none."""
        del self._blocks[key.hash, group]

    def holder(self, hash: bytes, group: int = 0) -> int | None:
        """The block id under `hash`, without comparison (for checks)."""
        entry = self._blocks.get((hash, group))
        return None if entry is None else entry[1]
