"""The page at / and its files: packaged ones only, with headers that let a browser do little and ask seldom."""

from __future__ import annotations

import re

import httpx
import pytest
from support.source_tree import ROOT

from quire.server.routes_page import CONTENT_TYPES, INDEX, packaged_assets

FOLDER = ROOT / "server" / "playground"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def test_every_file_of_the_folder_is_served() -> None:
    """And none is empty, or of a type that browsers would have to guess."""
    assert INDEX in NAMES
    assert sorted(packaged_assets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
async def test_files(http: httpx.AsyncClient, name: str) -> None:
    answer = await http.get(f"/playground/{name}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].encode() == CONTENT_TYPES["." + name.rpartition(".")[2]]


async def test_the_page_is_the_index(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert page.content == (FOLDER / INDEX).read_bytes()
    assert page.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/", f"/playground/{INDEX}"])
async def test_headers(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert set(policy) & {"script-src", "style-src", "connect-src"} == set(), "nothing beyond default-src"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


async def test_a_browser_that_has_the_file_gets_304(http: httpx.AsyncClient) -> None:
    etag = (await http.get("/")).headers["etag"]
    for held in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await http.get("/", headers={"if-none-match": held})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert "content-length" not in answer.headers
    assert (await http.get("/", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["nope.js", "", "%2e%2e", "%2e%2e%2fapp.py", "..%2fconfig.yaml", "config.yaml", "a/index.html", "%00"],
)
async def test_nothing_else_is_served(http: httpx.AsyncClient, name: str) -> None:
    answer = await http.get(f"/playground/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".html")])
def test_the_policy_allows_what_the_page_does(name: str) -> None:
    """No inline script or style, and everything it loads is packaged."""
    text = (FOLDER / name).read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text) == []
    loaded = re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", text)
    own = [path for path in loaded if "playground/" in path]
    assert [path for path in own if path.rpartition("/")[2] not in NAMES] == []
    assert re.findall(r"<(?:script|link|img)[^>]*https?://", text) == []
