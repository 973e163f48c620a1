"""The page for those who see little, or use no mouse: contrast and focus, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.playground import ANSWERS, ServedPlayground, answered, ask
from support.server import wait_until

ANSWERS["many kinds"] = (
    "# Title\n\n`code`, [link](https://example.org/)\n\n> said\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n```python\nx\n```"
)

FAINT = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (...layers) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of layers) [context.fillStyle] = [colour], context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled, option, .unseen, .tools")) continue;
    const below = [];
    for (let at = element; at; at = at.parentElement) below.unshift(getComputedStyle(at).backgroundColor);
    const [back, text] = [paint(...below), paint(...below, getComputedStyle(element).color)];
    const contrast = (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05);
    const name = `${element.tagName}.${element.className}`;
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${name}: ${element.textContent}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(open_page: Callable[..., Any], served: ServedPlayground, theme: str) -> None:
    """By 4.5 to 1, as WCAG 2 has it for AA, whatever is on the page."""
    page = open_page(served.url, color_scheme=theme)
    page.wait_for_selector("#pool-state[data-state=live]")
    faint = page.evaluate(FAINT)
    ask(page, "Many many kinds.")
    answered(page)
    page.click(".explained summary")
    page.click("#parameters summary")
    served.hold()
    page.click("#fill")
    wait_until(lambda: bool(served.ask(lambda: served.engine.sequences)), "the first")
    served.step()
    page.wait_for_selector("#sequences .chip")
    faint += page.evaluate(FAINT)
    page.click("#fill")
    served.release()
    assert faint == []


def test_what_has_the_focus_shows_it(page: Any) -> None:
    """Round the page with Tab: every stop is outlined, and every part of the page is reached."""
    ask(page, "Many many kinds.")
    answered(page)
    page.evaluate("document.activeElement.blur()")
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => {
          const at = document.activeElement;
          if (at === document.body || at.dataset.passed) return null;
          at.dataset.passed = "yes";
          const box = at.closest(".box") ?? at;
          const outlined = [at, box].some(element => getComputedStyle(element).outlineStyle !== "none");
          return [at.id || at.textContent.trim(), outlined && at.checkVisibility({ opacityProperty: true })];
        }""")
        if stop is not None:
            stops.append(stop)
    assert [name for name, seen in stops if not seen] == []
    names = {name for name, _ in stops}
    assert names >= {"new-chat", "theme", "Regenerate", "details", "composer-text", "send", "fill", "pool-canvas"}
