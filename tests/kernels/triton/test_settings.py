"""The table that says how kernels are launched."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from quire.kernels.triton.settings import AttentionSettings, MatmulSettings, Table, load


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("group", [1, 4, 7, 16, 17, 40, 64])
def test_every_shape_has_settings(head_dim: int, group: int) -> None:
    table = load()
    for phase in ("decode", "prefill"):
        row = table.attend(phase, head_dim, group, 48, 12345)
        assert row.rows >= max(16, group)
        assert row.keys >= 16
        assert 1024 % row.keys == 0, "splits of the batch-invariant mode are whole tiles"
    assert table.multiply("experts", 1, 64, 64) is not None
    assert table.multiply("invariant", 1, 64, 64) is not None


def test_what_no_row_serves_is_refused() -> None:
    with pytest.raises(ValueError, match="head dims up to 256 and groups up to 64"):
        load().attend("decode", 512, 4, 16, 1)


def test_rows_of_one_shape_serve_no_other(tmp_path: Path) -> None:
    measured = AttentionSettings("decode", 128, 4, 16, 64, 16, 32, 2, 4, 2)
    general = AttentionSettings("decode", 128, 16, 0, 0, 16, 64, 4, 3, 4)
    skinny = MatmulSettings("few_rows", 16, 4096, 1024, 16, 32, 128, 4, 3, 2)
    Table("here", (measured, general), (skinny,)).save(tmp_path / "table.json")
    table = load(tmp_path / "table.json")
    assert table == Table("here", (measured, general), (skinny,))
    assert table.attend("decode", 128, 4, 16, 64) == measured
    for other in ((64, 4, 16, 64), (128, 2, 16, 64), (128, 4, 32, 64), (128, 4, 16, 65)):
        assert table.attend("decode", *other) == general
    assert table.multiply("few_rows", 16, 4096, 1024) == skinny
    assert table.multiply("few_rows", 17, 4096, 1024) is None
    assert table.multiply("few_rows", 1, 1024, 4096) is None
