"""Cache groups: layers that cache alike share one block table in each sequence.

    layers of a model   F w w w w w F w w w w w      F: looks at everything before it, w: through a window
    groups              F F . . .   one block table that keeps everything
                        w w . . .   five that let go of what their window has slid past
                        ...

All groups draw on one pool of blocks of one size in bytes, so all have equally many layers; the last group of a kind
may have fewer, and leaves a part of its blocks unused. Layers that cannot be cut up so (unequal bytes a token) are one
group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire.engine.models.config import CacheSpec

NULL_BLOCK = 0
"""Where a group has a window, this block is nobody's: it stands in block tables for blocks that nobody reads any more,
and holds zeros."""


@dataclass(frozen=True)
class CacheGroup:
    """Layers with one block table a sequence."""

    window: int | None = None
    """Position i reads i - window + 1 .. i; None: everything before it."""
    layers: tuple[int, ...] = ()
    """Indices of the layers, in ascending order. Where there is one group nobody asks, and it may be ()."""

    def first_block(self, num_tokens: int, block_size: int) -> int:
        """Index of the first block that the token after `num_tokens`, or any later one, reads or writes."""
        return 0 if self.window is None else max(0, num_tokens - self.window + 1) // block_size


ONE_GROUP = (CacheGroup(),)
"""For models whose layers all keep everything."""


def has_window(groups: Iterable[CacheGroup]) -> bool:
    """Whether some blocks are let go of while their sequence runs; if so, `NULL_BLOCK` is reserved."""
    return any(group.window is not None for group in groups)


def group_layers(specs: Sequence[CacheSpec]) -> tuple[CacheGroup, ...]:
    """The groups of a model whose layer i caches specs[i].

    Layers of one window belong together, in groups of as many layers as the rarest window has. A group of layers with
    different windows has the longest of them.
    """
    kinds: dict[int | None, list[int]] = {}
    for layer, spec in enumerate(specs):
        kinds.setdefault(spec.window, []).append(layer)
    if len(kinds) > 1 and len({spec.num_kv_heads * spec.head_dim for spec in specs}) > 1:
        windows = [window for window in kinds if window is not None]
        return (CacheGroup(None if None in kinds else max(windows), tuple(range(len(specs)))),)
    size = min(len(layers) for layers in kinds.values())
    return tuple(
        CacheGroup(window, tuple(layers[first : first + size]))
        for window, layers in kinds.items()
        for first in range(0, len(layers), size)
    )
