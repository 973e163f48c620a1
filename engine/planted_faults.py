"""Faults that an end-to-end test plants in a real engine, by name, in its first frame (`Configure.faults`).

    load.raise       text     the start fails with this text
    forward.raise    token    a forward pass over this token id raises
    forward.nan      token    the sequence that computes this token id gets hidden states that are no numbers
    forward.hang     token    a forward pass over this token id never returns
    forward.kill     token    a forward pass over this token id ends the process at once, as from outside
    forward.crash    token    a forward pass over this token id ends the process, as a fault in native code does
    forward.sleep    seconds  every forward pass takes so much longer
    table.wrong      number   in a step of so many sequences, or more, all read the first block of the first one

In production the dictionary is empty and nothing here runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from quire.engine.runner_seams import Model
from quire.kernels.interface import AttentionPlan

NAMES = (
    "load.raise",
    "forward.raise",
    "forward.nan",
    "forward.hang",
    "forward.kill",
    "forward.crash",
    "forward.sleep",
    "table.wrong",
)


def plant(model: Model, faults: dict[str, str]) -> Model:
    """`model` with `faults` in it; raises ValueError for an unknown name, and RuntimeError for `load.raise`."""
    if unknown := set(faults) - set(NAMES):
        raise ValueError(f"unknown faults {sorted(unknown)}; there are {', '.join(NAMES)}")
    if "load.raise" in faults:
        raise RuntimeError(faults["load.raise"])
    return FaultyModel(model, faults) if faults else model


class FaultyModel:
    """A `Model` that misbehaves at the sight of a token."""

    def __init__(self, model: Model, faults: dict[str, str]) -> None:
        self._model = model
        self._seconds = float(faults.get("forward.sleep", "0"))
        self._crowd = int(faults["table.wrong"]) if "table.wrong" in faults else None
        numbers = ("forward.sleep", "table.wrong")
        self._tokens = {name: int(value) for name, value in faults.items() if name not in numbers}

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        plans: Sequence[AttentionPlan],
        kv: Sequence[tuple[Tensor, Tensor]],
        on_layer: Callable[[], None],
    ) -> Tensor:
        """See `Model.forward`."""
        time.sleep(self._seconds)
        sees = {name: bool((input_ids == token).any()) for name, token in self._tokens.items()}
        if sees.get("forward.kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if sees.get("forward.crash"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.SIGSEGV)
        if sees.get("forward.hang"):
            threading.Event().wait()
        if sees.get("forward.raise"):
            raise RuntimeError("a planted fault")
        if self._crowd is not None and len(plans[0].seq_lens_list) >= self._crowd:
            plans = [_with_a_wrong_block(plan) for plan in plans]
        hidden = self._model.forward(input_ids, positions, plans, kv, on_layer)
        if sees.get("forward.nan"):
            starts = plans[0].query_start_list
            for start, end in itertools.pairwise(starts):
                if (input_ids[start:end] == self._tokens["forward.nan"]).any():
                    hidden[start:end] = float("nan")
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._model.logits(hidden)


def _with_a_wrong_block(plan: AttentionPlan) -> AttentionPlan:
    """The plan in which every sequence reads the first block of the first."""
    tables = plan.block_tables.clone()
    tables[1:, 0] = tables[0, 0]
    return dataclasses.replace(plan, block_tables=tables)
