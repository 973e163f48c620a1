"""The rows of GPUs: what is computed from measurements, and that every call can be made."""

from __future__ import annotations

import pytest
import torch

from quire.benchmarks.cli import main as bench
from quire.benchmarks.gpu_kernels import Result, Row, Sizes, cases, goals
from quire.clients.terminal import CommandFailed


def row(goal: str, op: str, us: float, gb_per_s: float, backend: str = "triton") -> Row:
    return Row(goal, op, backend, us, gb_per_s, 0.0)


def test_the_worst_shape_counts() -> None:
    rows = [
        row("K1", "a", 100, 3600),
        row("K1", "b", 100, 3240),
        row("K1", "b", 100, 1000, "torch SDPA, side by side"),
        row("K4", "a", 9, 100),
        row("K4", "b", 16, 100),
        row("K5", "a", 100, 1),
        row("K5", "a", 80, 1, "torch SDPA, side by side"),
    ]
    found = goals(Result("a GPU", "3.6.0", "a table", 4000.0, 800.0, rows))
    assert [(goal.id, goal.value, goal.verdict) for goal in found] == [
        ("K1", 0.81, "gate"),
        ("K4", 16, "short of the gate"),
        ("K5", 0.8, "gate"),
        ("K7", None, "not measured"),
    ]


def test_every_call_launches_kernels() -> None:
    pytest.importorskip("triton")
    from quire.kernels.triton.ahead import recorded

    sizes = Sizes(decode_large=((2, 40),), decode_small=(33,), prefill=(20,), rows=3)
    goals_seen = set()
    for goal, _, backend, call, nbytes, _ in cases(torch.device("cpu"), sizes):
        with recorded() as launches:
            call()
        assert bool(launches) == (backend == "triton")
        assert nbytes > 0
        goals_seen.add(goal)
    assert goals_seen == {"K1", "K4", "K5", "K7"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu() -> None:
    with pytest.raises(CommandFailed, match="finds no CUDA device"):
        bench("bench", ["kernels", "--device", "cuda"])
