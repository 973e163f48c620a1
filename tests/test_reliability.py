"""docs/reliability.md names a test for every row, or says that it is not built; and the named tests exist."""

from __future__ import annotations

import ast
import functools
import re

import pytest
from support.source_tree import ROOT

PAGE = ROOT / "docs" / "reliability.md"
ROWS = re.findall(r"^\| ([FBMC]\d+) \| ([^|]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
MISSING_B = {7, 9, 11, 12, 21, 26, 28, 36, 41, 53, 60, 64, 65, 73, 75, 77, 78, 79, 83}
WANTED = [
    *(f"F{number:02}" for number in range(1, 66) if number != 16),
    *(f"B{number:03}" for number in range(1, 88) if number not in MISSING_B),
    *(f"M{number:02}" for number in (1, 4, 5, 6, 7, 8, 9, 10, 11, 14, 16, 17, 18, 20, 22)),
    *(f"C{number:02}" for number in (1, 2, 3, 5, 6, 7, 8)),
]


@functools.cache
def names_in(file: str) -> set[str]:
    """The names of a file's tests."""
    nodes = ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@functools.cache
def cases_in(file: str) -> str:
    """Where the cases of a file's parametrized tests are written."""
    shared = ROOT / "tests" / "support" / "bad_requests.py"
    return (ROOT / "tests" / file).read_text() + shared.read_text()


def test_every_row_is_there_once() -> None:
    assert [row for row, _, _ in ROWS] == WANTED


@pytest.mark.parametrize(("row", "fault", "proof"), ROWS, ids=[row for row, _, _ in ROWS])
def test_every_named_test_exists(row: str, fault: str, proof: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)(?:\[([^\]]+)\])?`", proof)
    assert named or "not built" in proof, f"{row} has neither a test nor a reason"
    for file, function, case in named:
        assert function in names_in(file), f"{row}: {file} has no {function}"
        assert not case or f'"{case}' in cases_in(file), f"{row}: no case {case} in {file}"
