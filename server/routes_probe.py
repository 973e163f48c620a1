"""Probes and figures: /health, /ready, /version, /metrics, /load, and the page at /."""

from __future__ import annotations

from importlib.metadata import version

from quire.server.errors import unavailable
from quire.server.exchange import Exchange
from quire.server.metrics import CONTENT_TYPE
from quire.server.service import Service, draining

_HTML = (b"content-type", b"text/html; charset=utf-8")
_PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)
_READY_SHARE = 0.9
"""Of the queue: a server whose queue is fuller asks balancers to send work elsewhere."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Quire</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}code{font-size:.95em}
li{margin:.2rem 0}</style>
<h1>Quire</h1>
<p>An LLM inference server, version VERSION. It speaks OpenAI's API:</p>
<ul>
<li><code>POST /v1/chat/completions</code>, <code>POST /v1/completions</code>, <code>GET /v1/models</code></li>
<li><code>POST /tokenize</code>, <code>POST /detokenize</code></li>
<li><code>GET /health</code> (alive), <code>/ready</code> (accepting), <code>/version</code>, <code>/load</code>,
<code>/metrics</code></li>
</ul>
<p>Try it:</p>
<pre><code>curl -N BASE/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "MODEL", "stream": true, "messages": [{"role": "user", "content": "Who are you?"}]}'</code></pre>
</html>
"""


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

    async def page(self, exchange: Exchange) -> None:
        """GET /: what this is, and how to talk to it."""
        # Nothing of the request goes into the page: a Host header is text of a stranger.
        page = _PAGE.replace("VERSION", version("quire")).replace("MODEL", _escaped(self.service.models[0]))
        settings = self.service.settings
        base = "" if settings.uds is not None else f"http://{settings.host}:{settings.port}"
        await exchange.respond(200, page.replace("BASE", _escaped(base)).encode(), _HTML, *_PAGE_HEADERS)


def _escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(character, entity)
    return text
