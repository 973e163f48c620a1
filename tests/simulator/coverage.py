"""What has happened: faults, rare branches and edges of the state machine, by name. The "sometimes" checks."""

from __future__ import annotations

from collections import Counter

from quire.simulator.plan import BUGGIFY, CLIENT_FAULTS, LINK_FAULTS, STEP_FAULTS, WORLD_FAULTS

EDGES = (
    "waiting>running", "waiting>finished", "running>preempted", "running>finished", "preempted>running",
    "preempted>finished", "leaving.held",
    "end.stop", "end.length", "end.aborted", "end.timeout", "end.error", "suspect.alone",
    "fork.beside", "fork.queued", "fork.copied", "fork.refused",
    "cache.hit", "cache.shadow", "window.slid", "queue.looked_past", "queue.refused",
    "prefill.chunked", "prefill.parallel", "depth.several",
    "table.loading", "table.ready", "table.restarting", "table.draining",
    "failed.server_is_overloaded", "failed.engine_restarting", "failed.server_draining", "failed.request_lost",
    "failed.model_loading",
    "client.answered", "client.failed", "client.left", "client.cut", "stop.string", "rows.merged",
    "engine.recovered", "engine.restarted", "pool.minimum",
)  # fmt: skip
"""Edges of sequences, of choices, of the prefix cache, of the table and of clients."""

EXPECTED = frozenset((*EDGES, *BUGGIFY, *STEP_FAULTS, *LINK_FAULTS, *WORLD_FAULTS, *CLIENT_FAULTS))


class Coverage(Counter[str]):
    """Counts by name."""

    def missing(self, at_least: int) -> dict[str, int]:
        """What has happened less often than that, of all that must."""
        return {name: self[name] for name in sorted(EXPECTED) if self[name] < at_least}
