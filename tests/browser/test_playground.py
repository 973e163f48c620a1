"""The playground in a real browser: what a user does, what the engine is asked, and what a model may not do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.playground import ANSWERS, DEFAULT, ServedPlayground, answered, ask, question_of
from support.server import wait_until

from quire.engine.messages import Add, Cancel

HOSTILE = (
    "# Title\n\nSome **bold** and *slanted* `code`, "
    '<img src=x onerror="window.owned=1"> and <script>window.owned=2</script>.\n\n'
    "- [good](https://example.org/page)\n- [bad](javascript:window.owned=3)\n\n"
    "```python\nprint('<b>')\n```\n"
)
ANSWERS["markdown"] = HOSTILE
ANSWERS["table"] = (
    "Ships:\n| name | masts |\n|:--|--:|\n| *Ada* | 3 |\n| a \\| b | <b>2</b> |\n\nThat is all | of them."
)


def last_add(served: ServedPlayground) -> Add:
    """The newest request."""
    add = served.received(Add)[-1]
    assert isinstance(add, Add)
    return add


def test_an_answer_grows_while_it_is_generated(page: Any, served: ServedPlayground) -> None:
    served.hold()
    before = len(served.received(Add))
    ask(page, "Count for me.")
    wait_until(lambda: len(served.received(Add)) > before, "the request")
    served.step(3)
    body = page.locator(".answer .turn-body")
    page.wait_for_selector(".answer .turn-body >> text=One")
    assert DEFAULT.startswith(body.inner_text())
    assert page.get_attribute(".answer", "aria-busy") == "true"
    assert page.is_visible("#stop")
    assert not page.is_visible("#welcome")
    served.release()
    answered(page)
    assert body.inner_text() == DEFAULT
    figures = page.inner_text(".answer .figures-line")
    assert re.search(r"first token [\d.]+ m?s.*[\d.]+ tokens/s.*\d+ in, \d+ out", figures, re.DOTALL), figures


def test_escape_stops_the_answer_and_the_engine(page: Any, served: ServedPlayground) -> None:
    served.hold()
    before = len(served.received(Add))
    ask(page, "An endless story.")
    wait_until(lambda: len(served.received(Add)) > before, "the request")
    served.step(5)
    page.wait_for_selector(".answer .turn-body >> text=on and")
    page.press("body", "Escape")
    answered(page)
    assert "stopped by you" in page.inner_text(".answer .figures-line")
    assert page.inner_text(".answer .turn-body").startswith("on and")
    request_id = last_add(served).request_id
    cancelled = lambda: any(isinstance(c, Cancel) and c.request_id == request_id for c in served.received(Cancel))  # noqa: E731
    wait_until(cancelled, "the engine is told")


def test_edit_drops_what_follows(page: Any, served: ServedPlayground) -> None:
    for number, question in enumerate(("First thing.", "Second thing."), 1):
        ask(page, question)
        answered(page, number)
    page.locator(".question").first.hover()
    page.locator(".question >> text=Edit").first.click()
    page.fill(".edit", "Another first thing.")
    page.press(".edit", "Enter")
    page.wait_for_selector(".question >> text=Another first thing.")
    answered(page)
    assert page.locator(".question").count() == page.locator(".answer").count() == 1
    assert question_of(last_add(served)) == "Another first thing."


def test_regenerate_asks_again_and_delete_forgets(page: Any, served: ServedPlayground) -> None:
    ask(page, "The only thing.")
    answered(page)
    asked = len(served.received(Add))
    page.click(".answer >> text=Regenerate")
    wait_until(lambda: len(served.received(Add)) == asked + 1, "asked again")
    answered(page)
    assert page.locator(".answer").count() == 1
    assert question_of(last_add(served)) == "The only thing."
    page.hover(".question")
    page.click(".question >> text=Delete")
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")


def test_what_a_model_says_stays_text(page: Any) -> None:
    ask(page, "Some markdown, please.")
    answered(page)
    assert page.evaluate("window.owned") is None
    prose = page.locator(".answer .prose")
    assert '<img src=x onerror="window.owned=1"> and <script>' in prose.inner_text()
    counts = prose.evaluate("root => ['img','script','h3','strong','em','a'].map(t => root.querySelectorAll(t).length)")
    assert counts == [0, 0, 1, 1, 1, 1]
    link = prose.locator("a")
    assert link.get_attribute("href") == "https://example.org/page"
    assert "noopener" in link.get_attribute("rel")
    assert prose.locator("pre code").inner_text() == "print('<b>')"
    assert prose.locator("figcaption").inner_text().split() == ["python", "Copy"]


def test_a_table_is_a_table(page: Any) -> None:
    ask(page, "A table, please.")
    answered(page)
    rows = page.locator(".answer tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
    assert rows == [["name", "masts"], ["Ada", "3"], ["a | b", "<b>2</b>"]]
    assert page.locator(".answer td em").inner_text() == "Ada"
    assert page.locator(".answer td.end").count() == 2
    assert page.locator(".answer .prose > p").all_inner_texts() == ["Ships:", "That is all | of them."]


def test_an_answer_tells_where_its_time_went(page: Any) -> None:
    ask(page, "Why so long?")
    answered(page)
    bar = page.locator(".answer .ledger")
    assert re.match(r"Where [\d.]+ m?s went\. waiting for the first step: ", bar.get_attribute("aria-label"))
    shares = bar.evaluate("bar => [...bar.children].map(part => [part.className, Number(part.style.flexGrow)])")
    assert {name for name, _ in shares} >= {"piece queue", "piece prefill", "piece decode", "piece sampling"}
    assert not page.is_visible(".ledger-legend")
    page.focus(".explained summary")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ledger-legend >> text=computing the prompt")
    said = page.inner_text(".explained")
    assert "Held up longest by the prompts of 1f3a9c02 (" in said
    assert re.search(r"0 of \d+ prompt tokens came from the cache\. The next token, number 3, is another one", said)
    assert page.locator(".divergence mark").count() == 2
    ask(page, "And now?")
    answered(page, 2)
    assert page.locator(".ledger-legend >> nth=1").is_visible(), "who opened one sees the next ones open"


def test_a_server_that_is_open_tells_nothing_of_its_cache(open_page: Callable[..., Any]) -> None:
    with ServedPlayground(host="0.0.0.0", allow_unauthenticated=True) as served:
        page = open_page(served.url)
        ask(page, "Why so long?")
        answered(page)
        assert page.inner_text(".answer .turn-body") == DEFAULT
        page.click(".explained summary")
        assert "computing the prompt" in page.inner_text(".explained")
        assert "cache" not in page.inner_text(".explained")
        page.context.close()


def test_parameters_reach_the_engine(page: Any, served: ServedPlayground) -> None:
    page.click("#parameters summary")
    page.fill("#system", "Answer like a sailor.")
    given = {"temperature": 0.5, "top_p": 0.8, "top_k": 7, "min_p": 0.05, "max_tokens": 4, "seed": 11}
    for name, value in given.items():
        page.fill(f"#{name}", str(value))
    page.fill("#stop-strings", "END\n###")
    ask(page, "Speak.")
    answered(page)
    params = last_add(served).params
    assert {name: getattr(params, name) for name in given} == given
    assert params.stop == ("END", "###")
    assert "cut at max_tokens" in page.inner_text(".answer .figures-line")
    summary = page.inner_text("#parameters-summary")
    assert "system prompt" in summary
    assert "temperature 0.5" in summary
    page.click("#parameters-form >> text=Reset")
    ask(page, "Speak again.")
    answered(page, 2)
    assert last_add(served).params.max_tokens > 1000


def test_a_refusal_stands_where_it_happened(page: Any, served: ServedPlayground) -> None:
    page.click("#parameters summary")
    page.fill("#temperature", "9")
    ask(page, "Too hot.")
    page.wait_for_selector(".answer .failure")
    assert "temperature" in page.inner_text(".answer .failure")
    page.fill("#temperature", "")
    page.click(".failure >> text=Try again")
    page.wait_for_selector(f".answer .turn-body >> text={DEFAULT}")
    assert page.locator(".failure:visible").count() == 0


CELL = """(canvas, place) => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const ratio = canvas.width / canvas.clientWidth;
  return [...context.getImageData((place + 5) * ratio, 9 * ratio, 1, 1).data];
}"""


def colour(page: Any, place: int) -> list[int]:
    """The pixel so far from the left in the first row of cells, once what is due is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    pixel: list[int] = page.locator("#pool-canvas").evaluate(CELL, place)
    return pixel


def test_the_picture_shows_the_blocks_of_a_sequence(page: Any, served: ServedPlayground) -> None:
    page.wait_for_selector("#pool-state[data-state=live]")
    free = colour(page, 0)
    served.hold()
    before = len(served.received(Add))
    ask(page, "An endless story, to look at.")
    wait_until(lambda: len(served.received(Add)) > before, "the request")
    served.step(40)
    page.wait_for_selector(".answer .turn-body >> text=on and")
    served.step()
    page.wait_for_selector("#sequences .row-name >> text=An endless story, to look at.")
    page.wait_for_selector("#figure-used >> text=4")
    assert "4 in use" in page.get_attribute("#pool-canvas", "aria-label")
    assert page.locator("#sequences .chip").all_inner_texts() == ["0", "1", "2", "3"]
    used = colour(page, 0)
    assert max(used[:3]) - min(used[:3]) > 60, "a hue"
    assert max(free[:3]) - min(free[:3]) < 30, "none"
    assert "hued" in page.get_attribute(".answer", "class"), "the answer wears the colour of its sequence"
    page.hover("#pool-canvas", position={"x": 6, "y": 6})
    page.wait_for_selector("#pool-tooltip >> text=positions 0 to 15")
    assert "lit" in page.get_attribute("#sequences .row", "class")
    page.click("#stop")
    served.release()
    page.wait_for_selector("#sequences-empty")
    assert colour(page, 0) == free


def test_nobody_watches_a_picture_that_is_not_seen(page: Any, served: ServedPlayground) -> None:
    page.wait_for_selector("#pool-state[data-state=live]")
    assert served.ask(lambda: served.engine.watched)
    page.click("#pool-switch")
    wait_until(lambda: not served.ask(lambda: served.engine.watched), "the watch ends")
    page.click("#pool-switch")
    wait_until(lambda: served.ask(lambda: served.engine.watched), "the watch begins again")


def test_filling_the_pool_runs_eight_at_once(page: Any, served: ServedPlayground) -> None:
    page.wait_for_selector("#pool-state[data-state=live]")
    served.hold()
    before = len(served.received(Add))
    page.click("#fill")
    wait_until(lambda: len(served.received(Add)) == before + 1, "the first")
    served.step()
    wait_until(lambda: len(served.received(Add)) == before + 8, "the others")
    served.step()
    page.wait_for_selector("#sequences .row >> nth=7")
    assert page.inner_text("#figure-running") == "8"
    assert page.inner_text("#fill") == "Stop (8 running)"
    served.release()
    page.wait_for_selector("#fill >> text=Fill the pool")


TWO_GROUPS = """async () => {
  const { Pool } = await import("/playground/pool_model.js");
  const pool = new Pool();
  const tables = [{ window: null, first: 0, blocks: [1, 2, 3] }, { window: 16, first: 1, blocks: [5, 6] }];
  const sequence = { id: "1f3a9c02/0", status: "running", prompt: 40, tokens: 42, computed: 41, cached: 0, tables };
  const blocks = [1, 2, 3, 5, 6].map(id => [id, 1, 0]);
  pool.apply({ kind: "full", num_blocks: 8, block_size: 16, blocks, evicted: [], sequences: [sequence] }, 0);
  return [1, 5, 6].map(id => pool.describe(id).lines[1]).concat(pool.held(6));
}"""


def test_blocks_of_several_cache_groups_know_their_positions(page: Any) -> None:
    """Also when the window has slid past the first of them."""
    assert page.evaluate(TWO_GROUPS) == [
        "1f3a9c02/0: positions 0 to 15, for layers that see everything",
        "1f3a9c02/0: positions 16 to 31, for layers that see the last 16",
        "1f3a9c02/0: positions 32 to 40, for layers that see the last 16",
        9,
    ]


def test_what_is_exported(page: Any, served: ServedPlayground, tmp_path: Path) -> None:
    ask(page, "It's for export.")
    answered(page)
    page.click("#export summary")
    with page.expect_download() as download:
        page.click("#export-json")
    download.value.save_as(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["model"] == "starter"
    assert [message["content"] for message in saved["messages"]] == ["It's for export.", DEFAULT]
    assert saved["messages"][1]["quire"]["timings"]["total_ms"] > 0
    assert saved["messages"][1]["statistics"]["usage"]["completion_tokens"] > 5
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#export-curl")
    page.wait_for_selector("#export-curl >> text=Copied")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line.startswith(f"curl -N '{served.url}/v1/chat/completions'")
    assert r"It'\''s for export." in line


def test_a_key_is_asked_for_only_when_it_is_needed(open_page: Callable[..., Any], page: Any) -> None:
    assert not page.is_visible("#key-form")
    key = "a-key-of-sixteen-characters"
    with ServedPlayground(api_key=key) as locked:
        page = open_page(locked.url)
        page.wait_for_selector("#key-form")
        page.fill("#key", "not-the-key-at-all-1")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-message >> text=does not know")
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_selector("#key-form", state="hidden")
        ask(page, "Now?")
        answered(page)
        assert page.inner_text(".answer .turn-body") == DEFAULT
        page.wait_for_selector("#pool-state[data-state=live]")
        assert page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
        page.context.close()


def test_the_theme_is_remembered(open_page: Callable[..., Any], served: ServedPlayground) -> None:
    page = open_page(served.url, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light


def test_a_phone_has_one_column(open_page: Callable[..., Any], served: ServedPlayground) -> None:
    page = open_page(served.url, width=360, height=740)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    ask(page, "Some markdown, please.")
    answered(page)
    assert page.evaluate(overflow) <= 0
    assert not page.is_visible("#pool")
    page.click("#tab-pool")
    page.wait_for_selector("#pool-state[data-state=live]")
    assert not page.is_visible("#chat")
    assert page.evaluate(overflow) <= 0
    assert page.locator("#pool").evaluate("pool => pool.scrollWidth - pool.clientWidth") <= 0


def test_the_keyboard_is_enough(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="hidden")
    page.keyboard.press("/")
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    answered(page)
    assert page.inner_text(".question .turn-body") == "line one\nline two"
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".edit")
    assert page.input_value(".edit") == "line one\nline two"


@pytest.mark.parametrize("name", sorted((Path(__file__).parents[2] / "server" / "playground").glob("*.js"), key=str))
def test_no_script_parses_markup(name: Path) -> None:
    """No browser needed: the ways by which text becomes markup or code do not stand in the sources."""
    found = re.findall(
        r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc)", name.read_text()
    )
    assert found == []
