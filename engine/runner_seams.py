"""What every runner stands on: a model, the one operation of the kernels it calls itself, and who watches it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from quire.engine.messages import Failure
from quire.engine.sampler import internal_error
from quire.kernels.interface import AttentionPlan

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the runner asks of a model; `quire.engine.models.decoder.Decoder` is one."""

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        plans: Sequence[AttentionPlan],
        kv: Sequence[tuple[Tensor, Tensor]],
        on_layer: Callable[[], None],
    ) -> Tensor:
        """Hidden states [T, H] of input_ids, positions int64 [T]; keys and values go into `kv`.

        `plans` and `kv` have an entry for each layer; layers of one cache group share their plan.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [R, V] of hidden states [R, H]."""


class BlockCopier(Protocol):
    """The one operation of `Kernels` that the runner itself calls."""

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """See `quire.kernels.interface.Kernels.copy_blocks`."""


class StepWatch(Protocol):
    """Who is told that the engine moves; `quire.engine.progress_page.ProgressPage` is one."""

    def begin_step(self, request_ids: Sequence[str]) -> None:
        """These requests are computed now."""

    def tick(self) -> None:
        """Something moved: a layer was computed."""


class Unwatched:
    """A `StepWatch` for a runner that nobody watches."""

    def begin_step(self, request_ids: Sequence[str]) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""


def fault(what: str, error: Exception) -> Failure:
    """The failure that the client sees (no details), with the cause in the log."""
    log.error("a request %s", what, exc_info=error)
    return internal_error(f"this request {what}")
