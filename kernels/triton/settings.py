"""How kernels are launched: a table that is read once, and looked up by shape. Nothing is tuned while serving.

`settings.json` holds the rows; `python -m quire.kernels.triton.search` measures on a device and writes rows before the
ones that are there. The first row that fits is taken, so exact rows stand before general ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).parent / "settings.json"
Phase = Literal["decode", "prefill"]


@dataclass(frozen=True)
class AttentionSettings:
    """One row for attention: of one shape, or with `block_size` 0 of all up to one."""

    phase: Phase
    head_dim: int
    group: int
    """Query heads a key head."""
    block_size: int
    bucket: int
    """Up to so many programs, splits not counted (sequences times key heads); 0: any number."""
    rows: int
    """Query rows of a program: tokens times the heads of a group."""
    keys: int
    """Keys of a tile."""
    warps: int
    stages: int
    programs_per_processor: int = 0
    """Splits are chosen to make so many programs for each multiprocessor; 0: no splits."""

    def fits(self, head_dim: int, group: int, block_size: int, bucket: int) -> bool:
        """Whether this row is for that shape."""
        if self.block_size:
            same = (head_dim, group, block_size) == (self.head_dim, self.group, self.block_size)
        else:
            same = head_dim <= self.head_dim and group <= self.group
        return same and bucket <= (self.bucket or bucket)


@dataclass(frozen=True)
class MatmulSettings:
    """One row for the matmuls that are not cuBLAS's. 0 in a condition: any."""

    use: Literal["few_rows", "invariant", "experts"]
    most_rows: int
    """Up to so many rows (for experts: rows an expert gets on average)."""
    out_features: int
    in_features: int
    rows: int
    """Rows of a tile, then its outputs, and inputs taken at a time."""
    outputs: int
    inputs: int
    warps: int
    stages: int
    splits: int = 1
    """Programs that share the inputs of one output."""

    def fits(self, rows: int, out_features: int, in_features: int) -> bool:
        """Whether this row is for that shape."""
        return (
            rows <= (self.most_rows or rows)
            and out_features == (self.out_features or out_features)
            and in_features == (self.in_features or in_features)
        )


@dataclass(frozen=True)
class Table:
    """All rows, in the order in which they are tried, and where they were measured."""

    source: str
    attention: tuple[AttentionSettings, ...]
    matmul: tuple[MatmulSettings, ...]

    def attend(self, phase: Phase, head_dim: int, group: int, block_size: int, bucket: int) -> AttentionSettings:
        """The first row that fits; ValueError when the table has none."""
        for row in self.attention:
            if row.phase == phase and row.fits(head_dim, group, block_size, bucket):
                return row
        raise ValueError(
            f"no settings for attention ({phase}) with head dim {head_dim}, {group} heads a key head, blocks of "
            f"{block_size}; the Triton kernels serve head dims up to 256 and groups up to 64"
        )

    def multiply(self, use: str, rows: int, out_features: int, in_features: int) -> MatmulSettings | None:
        """The first row that fits; None: leave it to cuBLAS."""
        fitting = (row for row in self.matmul if row.use == use and row.fits(rows, out_features, in_features))
        return next(fitting, None)

    def save(self, path: Path) -> None:
        """Write the table, a row a line."""
        parts = [f'  "source": {json.dumps(self.source)}']
        for name, rows in (("attention", self.attention), ("matmul", self.matmul)):
            lines = ",\n".join(f"    {json.dumps(asdict(row))}" for row in rows)
            parts.append(f'  "{name}": [\n{lines}\n  ]')
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


@cache
def load(path: Path = TABLE) -> Table:
    """Read a table; the package's own unless another is named."""
    stored = json.loads(path.read_text())
    return Table(
        stored["source"],
        tuple(AttentionSettings(**row) for row in stored["attention"]),
        tuple(MatmulSettings(**row) for row in stored["matmul"]),
    )
