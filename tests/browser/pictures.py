"""Pictures of the playground with a real engine, in every state that it should look good in.

    .venv/bin/python tests/browser/pictures.py                 the ones that docs/ shows, into docs/images
    .venv/bin/python tests/browser/pictures.py --all FOLDER    every state, wide and narrow, light and dark

They show times; take those for docs/ while the machine does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from support.checkpoints import tiny_checkpoint  # noqa: E402
from support.server import ServerProcess  # noqa: E402

SIZES = {"wide": (1440, 1120), "narrow": (390, 844)}
THEMES = ("light", "dark")
FULL_POOL = ("--num-gpu-blocks-override", "96", "--max-num-seqs", "8", "--max-num-batched-tokens", "256")
SECONDS = 120_000
LIVE = "#pool-state[data-state=live]"
STORY = "Write a short story about a fox and a lantern."
SUM = "What is 47 + 35?"


class Camera:
    """One browser; `take(page, name)` writes a picture."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def page(self, url: str, size: str, theme: str) -> Iterator[Any]:
        """The page, loaded, with the pool in view where there is room for it."""
        width, height = SIZES[size]
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#model option[value]:not([value=''])", state="attached")
        if size == "wide":
            page.wait_for_selector(LIVE)
        yield page
        context.close()

    def take(self, page: Any, name: str) -> None:
        """Once what is due has been drawn."""
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=self.folder / f"{name}.png")
        print(self.folder / f"{name}.png", flush=True)


def ask(page: Any, text: str, *, wait: bool = True) -> None:
    """Type, send, and by default wait for the whole answer."""
    page.fill("#composer-text", text)
    page.press("#composer-text", "Enter")
    if wait:
        page.wait_for_selector(".answer:last-child[aria-busy=false]")


def show_pool(page: Any, size: str) -> None:
    """On a narrow page, the other tab."""
    if size == "narrow":
        page.click("#tab-pool")
        page.wait_for_selector(LIVE)


def running(page: Any, count: int, tokens: int = 40) -> None:
    """Until so many sequences run, and the last of them has got somewhere."""
    page.wait_for_function(
        """([count, tokens]) => {
          const rows = [...document.querySelectorAll("#sequences .row:not(.waiting) .row-count")];
          return rows.length >= count && rows.every(row => Number(row.textContent.split("+")[1]) >= tokens);
        }""",
        arg=[count, tokens],
    )


def idle(camera: Camera, server: ServerProcess, size: str, theme: str) -> None:
    """Nothing asked yet; then an answer that is taken apart."""
    with camera.page(server.url, size, theme) as page:
        camera.take(page, f"idle-{size}-{theme}")
        show_pool(page, size)
        if size == "narrow":
            camera.take(page, f"idle-pool-{size}-{theme}")
            page.click("#tab-chat")
        ask(page, SUM)
        ask(page, STORY)
        page.click(".answer:last-child .explained summary")
        camera.take(page, f"answered-{size}-{theme}")


def eight(camera: Camera, server: ServerProcess, size: str, theme: str, name: str = "") -> None:
    """Finished answers, the last one taken apart, and the eight sequences of the demonstration."""
    with camera.page(server.url, size, theme) as page:
        ask(page, SUM)
        ask(page, STORY)
        page.click(".answer:last-child .explained summary")
        show_pool(page, size)
        page.click("#fill")
        running(page, 8, 24)
        camera.take(page, name or f"eight-{size}-{theme}")
        if not name and size == "wide":
            page.hover("#pool-canvas", position={"x": 100, "y": 6})
            camera.take(page, f"eight-pointed-{size}-{theme}")
        page.click("#fill")


def full(camera: Camera, server: ServerProcess, size: str, theme: str) -> None:
    """More than the pool holds: sequences wait, blocks are evicted, some are preempted."""
    stop = threading.Event()

    def load(number: int) -> None:
        round_number = 0
        while not stop.is_set():
            round_number += 1
            prompt = f"{number} {round_number} " + "A fox and a lantern went over the hill to the sea. " * 9
            body = {"model": "starter", "prompt": prompt, "max_tokens": 160, "ignore_eos": True}
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(server.url + "/v1/completions", json=body, timeout=60)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(12)]
    with camera.page(server.url, size, theme) as page:
        for thread in threads:
            thread.start()
        ask(page, STORY, wait=False)
        show_pool(page, size)
        page.wait_for_selector("#sequences .row.waiting")
        page.wait_for_function("() => Number(document.querySelector('#figure-free').textContent) < 4")
        running(page, 3, 5)
        page.wait_for_function("() => document.querySelector('#preemptions').textContent !== ''")
        camera.take(page, f"full-{size}-{theme}")
        stop.set()
        if size == "narrow":
            page.click("#tab-chat")
        page.wait_for_selector(".answer:last-child[aria-busy=false]")
        page.click(".answer:last-child .explained summary")
        camera.take(page, f"full-answered-{size}-{theme}")
    for thread in threads:
        thread.join()


def groups(camera: Camera, server: ServerProcess, size: str, theme: str) -> None:
    """A model whose layers alternate between all that came before and a window."""
    with camera.page(server.url, size, theme) as page:
        show_pool(page, size)
        body = {
            "model": "made-up",
            "prompt": "the green house by the river " * 12,
            "max_tokens": 600,
            "ignore_eos": True,
        }
        body["n"] = 3
        thread = threading.Thread(target=lambda: httpx.post(server.url + "/v1/completions", json=body, timeout=120))
        thread.start()
        running(page, 3, 150)
        page.hover("#sequences .row >> nth=1")
        camera.take(page, f"groups-{size}-{theme}")
        thread.join()


def everything(camera: Camera, states: list[str]) -> None:
    """Every state, and its server."""
    with tempfile.TemporaryDirectory() as folder:
        made_up = tiny_checkpoint(
            Path(folder), "qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1, num_hidden_layers=2
        )
        servers = {
            "idle": (idle, ()),
            "eight": (eight, ()),
            "full": (full, FULL_POOL),
            "groups": (groups, (str(made_up), "--served-model-name", "made-up", "--num-gpu-blocks-override", "400")),
        }
        for state in states or servers:
            draw, arguments = servers[state]
            with ServerProcess(*arguments, wait=False) as server:
                server.wait_ready(SECONDS / 1000)
                for size in SIZES:
                    for theme in THEMES:
                        draw(camera, server, size, theme)


def for_the_docs(camera: Camera) -> None:
    """What docs/playground.md shows."""
    with ServerProcess(wait=False) as server:
        server.wait_ready(SECONDS / 1000)
        for theme in THEMES:
            eight(camera, server, "wide", theme, f"playground-{theme}")
        eight(camera, server, "narrow", "light", "playground-narrow")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every state, into this folder")
    parser.add_argument("--state", action="append", default=[], help="with --all: only this one; may be repeated")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", timeout=SECONDS)
        camera = Camera(browser, options.all or ROOT / "docs" / "images")
        if options.all:
            everything(camera, options.state)
        else:
            for_the_docs(camera)
        browser.close()


if __name__ == "__main__":
    main()
