"""Probes and figures: /health, /ready, /version, /metrics, /load."""

from __future__ import annotations

from importlib.metadata import version

from quire.server.errors import unavailable
from quire.server.exchange import Exchange
from quire.server.metrics import CONTENT_TYPE
from quire.server.service import Service, draining

_READY_SHARE = 0.9
"""Of the queue: a server whose queue is fuller asks balancers to send work elsewhere."""


class ProbeRoutes:
    """The handlers; none of them waits for anything."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, exchange: Exchange) -> None:
        """GET /health: 200 while this process and its engine live, also while loading or draining."""
        state = self.service.engine.state
        if state == "failed":
            raise unavailable("engine_restarting", "The engine has failed and is not coming back.", 30)
        await exchange.respond_json({"status": "ok", "engine": state, "restarts": self.service.engine.restarts})

    async def ready(self, exchange: Exchange) -> None:
        """GET /ready: 200 while new work is welcome."""
        service = self.service
        if service.leaving:
            raise draining()
        facts = service.facts()
        admission = service.admission
        room = facts.max_num_seqs + admission.max_queued * _READY_SHARE
        if admission.num_sequences >= room:
            wait = admission.estimated_wait(facts.max_num_seqs)
            raise unavailable("server_is_overloaded", "The queue is nearly full.", max(1.0, wait))
        await exchange.respond_json({"status": "ready"})

    async def version(self, exchange: Exchange) -> None:
        """GET /version."""
        await exchange.respond_json({"version": version("quire")})

    async def load(self, exchange: Exchange) -> None:
        """GET /load: requests under way here, and what the engine last said."""
        statistics = self.service.engine.statistics
        load = {
            "server_load": self.service.admission.num_requests,
            "num_requests": self.service.engine.registered(),
            "num_running": statistics.num_running,
            "num_waiting": statistics.num_waiting,
            "num_used_blocks": statistics.num_used_blocks,
            "num_blocks": statistics.num_blocks,
        }
        await exchange.respond_json(load)

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics, in Prometheus' text format."""
        await exchange.respond(200, self.service.metrics.exposition(), (b"content-type", CONTENT_TYPE.encode()))
