"""Probes and figures: /health, /ready, /version, /metrics, /load."""

from __future__ import annotations

from importlib.metadata import version

from quire.server.exchange import Exchange
from quire.server.metrics import CONTENT_TYPE
from quire.server.service import Service
from quire.server.vitals import Vitals


class ProbeRoutes:
    """The handlers; none of them waits for anything."""

    def __init__(self, service: Service, vitals: Vitals) -> None:
        self.service, self.vitals = service, vitals

    async def health(self, exchange: Exchange) -> None:
        """GET /health: 200 while this process and its engine live, also while loading or draining."""
        await exchange.respond_json(self.vitals.health())

    async def ready(self, exchange: Exchange) -> None:
        """GET /ready: 200 while new work is welcome."""
        await exchange.respond_json(self.vitals.ready())

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
