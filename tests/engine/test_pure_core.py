"""The pure core takes (state, events, now) and returns values: no clock, no chance, no world."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import quire.engine

PURE = (
    *("apart", "block_pool", "block_tables", "cache_groups", "cache_report", "core", "counters"),
    *("deadlines", "fair_queue", "faults", "flight", "forks", "prefill_shares", "step_cost"),
    *("invariants", "ledger", "messages", "pool_frame", "pool_picture", "prefix_cache", "prefix_index", "queues"),
    *("roster", "sampling_params", "scheduler", "sequence", "step"),
)
ALLOWED_IMPORTS = {
    "__future__", "array", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib",
    "heapq", "itertools",
    "logging", "msgspec", "struct", "typing",
}  # fmt: skip
BANNED_CALLS = {"id", "hash", "open", "print", "input", "globals"}


def faults_of(tree: ast.AST) -> list[str]:
    """What a pure module must not contain, by line."""
    found = []
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            name = module.removeprefix("quire.engine.")
            if name not in (*PURE, "config", "models.config") and module.split(".")[0] not in ALLOWED_IMPORTS:
                found.append(f"line {node.lineno}: imports {module}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            found.append(f"line {node.lineno}: calls {node.func.id}")
        if isinstance(node, ast.For | ast.comprehension) and _is_set(node.iter):
            found.append(f"line {node.iter.lineno}: iterates over a set")
    return found


def _is_set(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    return called or isinstance(node, ast.Set | ast.SetComp)


@pytest.mark.parametrize("module", PURE)
def test_the_module_is_pure(module: str) -> None:
    path = Path(quire.engine.__path__[0]) / f"{module}.py"
    assert faults_of(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import Random",
        "import torch.nn",
        "from quire.engine.runner import ModelRunner",
        "x = hash('a')",
        "x = sorted(y, key=lambda z: id(z))",
        "for x in {1, 2}: pass",
        "y = [x for x in set(z)]",
    ],
)
def test_the_lint_finds_what_it_looks_for(source: str) -> None:
    assert len(faults_of(ast.parse(source))) == 1
