"""The pages keep up with the code: every flag, field, error code and metric is on them, and every path exists."""

from __future__ import annotations

import re

import pytest
from support.source_tree import ROOT

from quire.server.errors import STATUS_OF_CODE
from quire.server.fields import CHAT_FIELDS, COMPLETION_FIELDS, Kind
from quire.server.layers import FIELDS, flag_name

PAGES = (
    "README.md",
    "docs/architecture.md",
    "docs/api.md",
    "docs/command-line.md",
    "docs/operations.md",
    "docs/simulator.md",
    "docs/reliability.md",
    "SECURITY.md",
)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def code(text: str) -> set[str]:
    """Every word between backquotes."""
    return {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s,]+", span)}


def test_every_flag_is_in_operations() -> None:
    wanted = {flag_name(name) for name in FIELDS if name != "model"}
    assert wanted - code(page("docs/operations.md")) == set()


def test_every_field_is_in_the_api_page() -> None:
    fields = {
        name
        for table in (CHAT_FIELDS, COMPLETION_FIELDS)
        for name, kind in table.items()
        if kind is not Kind.UNSUPPORTED
    }
    assert fields - code(page("docs/api.md")) == set()


def test_every_error_code_stands_beside_its_status() -> None:
    rows = [line for line in page("docs/api.md").splitlines() if re.match(r"\| \d", line)]
    for name, status in STATUS_OF_CODE.items():
        assert any(str(status) in row.split("|")[1] and f"`{name}`" in row for row in rows), name


def test_every_metric_is_in_operations() -> None:
    from quire.server import metrics

    source = (ROOT / "server" / "metrics.py").read_text()
    assert metrics.FINISH_REASONS
    names = re.findall(r"""(?:_counter|histogram|_gauge|_histogram)\(\s*"(\w+)",""", source)
    assert len(names) >= 15
    documented = {re.sub(r"\{.*", "", word) for word in code(page("docs/operations.md"))}
    assert set(names) - documented == set()


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_a_page_names_exists(name: str) -> None:
    text = page(name)
    named = re.findall(r"\]\(([\w/.]+)\)", text)
    named += re.findall(r"`((?:engine|kernels|server|clients|models|tests|docs|benchmarks)/[\w/.-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", ["serve", "test", "check"])
def test_the_make_targets_of_the_readme_exist(target: str) -> None:
    assert f"make {target}" in page("README.md")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_setting_and_command_of_a_conversation_is_on_its_page() -> None:
    from quire.clients.commands import COMMANDS
    from quire.clients.session import SETTINGS

    penalties = {name for name in SETTINGS if name.endswith("_penalty")}
    assert len(penalties) == 3
    assert {*SETTINGS, *COMMANDS} - penalties - code(page("docs/command-line.md")) == set()
