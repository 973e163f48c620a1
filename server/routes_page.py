"""The page at /, and the files that it is made of: what is packaged in server/playground, and nothing else.

The files are read once, at start. Nothing of a request, of the settings or of the model is written into them: the page
asks the API for what it shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from quire.server.errors import ApiError, quoted
from quire.server.exchange import Exchange

INDEX = "index.html"
CONTENT_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
"""By suffix; a file with another one is not served."""
_POLICY = (
    b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its bytes, its type, and the strong ETag of its content, with the quotes."""

    body: bytes
    content_type: bytes
    etag: bytes


def packaged_assets() -> dict[str, Asset]:
    """Every file of server/playground that may be served, by its name."""
    assets = {}
    for entry in (resources.files("quire.server") / "playground").iterdir():
        content_type = CONTENT_TYPES.get(PurePosixPath(entry.name).suffix)
        if content_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            assets[entry.name] = Asset(body, content_type, etag.encode())
    return assets


class PageRoutes:
    """The handlers; none of them waits for anything."""

    def __init__(self) -> None:
        self.assets = packaged_assets()

    async def page(self, exchange: Exchange) -> None:
        """GET /: the playground."""
        await _send(exchange, self.assets[INDEX])

    async def asset(self, exchange: Exchange) -> None:
        """GET /playground/NAME: one of the files that the page is made of."""
        asset = self.assets.get(exchange.path_params["name"])
        if asset is None:
            raise ApiError("unknown_url", f"Unknown URL {quoted(exchange.scope['path'])}; the page has no such file.")
        await _send(exchange, asset)


async def _send(exchange: Exchange, asset: Asset) -> None:
    """The file, or 304 when the browser has it."""
    headers = ((b"content-type", asset.content_type), (b"etag", asset.etag), *_HEADERS)
    if _has(exchange.header(b"if-none-match"), asset.etag):
        await exchange.respond(304, b"", *headers)
    else:
        await exchange.respond(200, asset.body, *headers)


def _has(if_none_match: bytes | None, etag: bytes) -> bool:
    """Whether the header names the ETag; compared weakly, as RFC 9110 section 13.1.2 has it."""
    tags = [tag.strip().removeprefix(b"W/") for tag in (if_none_match or b"").split(b",")]
    return etag in tags or tags == [b"*"]
