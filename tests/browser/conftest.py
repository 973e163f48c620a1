"""Debian's chromium, pages that forgive nothing, and the server that they look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.playground import ServedPlayground

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60_000
"""A busy machine draws slowly: milliseconds until a wait is a failure."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for a module: playwright keeps an event loop running, beside which no async test could run."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=2 * SECONDS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[ServedPlayground]:
    """The page without keys."""
    with ServedPlayground() as served:
        yield served


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, width=..., color_scheme=...)`. Afterwards: no error in the console, no other host was asked."""
    contexts, complaints, hosts = [], [], set()

    def note(message: Any) -> None:
        # The browser's own line about a refusal by the server, which some tests ask for.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def open_page(url: str, width: int = 1100, height: int = 700, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add((request.url.split("/")[2], url.split("/")[2])))
        page.goto(url)
        page.wait_for_selector("#model option[value=starter], #key-form:not([hidden])", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {asked for asked, own in hosts if asked != own} == set()


@pytest.fixture
def page(open_page: Callable[..., Any], served: ServedPlayground) -> Iterator[Any]:
    """The page, wide, with an engine that runs."""
    served.release()
    yield open_page(served.url)
    served.release()
