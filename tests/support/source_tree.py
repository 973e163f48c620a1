"""The repository's own Python files, parsed once, for the tests that read code."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "quire": "quire",
    "kernels": "quire.kernels",
    "engine": "quire.engine",
    "server": "quire.server",
    "clients": "quire.clients",
    "benchmarks": "quire.benchmarks",
    "models": "quire.models",
    "tests/simulator": "quire.simulator",
}
"""Folders below the root, and their import names."""


@dataclass(frozen=True)
class Import:
    """One imported module (`quire.engine.step`), its line, and whether it happens when the file is imported."""

    module: str
    line: int
    at_import: bool


@dataclass(frozen=True)
class Source:
    """One file: its import name, path below the root, and syntax tree."""

    module: str
    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        """The path as errors name it."""
        return str(self.path.relative_to(ROOT))


@functools.cache
def sources() -> dict[str, Source]:
    """Every file of the product by import name; `engine/step.py` is quire.engine.step."""
    found: dict[str, Source] = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = [*package.split("."), *path.relative_to(ROOT / folder).with_suffix("").parts]
            module = ".".join(names[:-1] if names[-1] == "__init__" else names)
            found[module] = Source(module, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imports(source: Source) -> list[Import]:
    """All imports of a file; those under `if TYPE_CHECKING` are none."""
    return list(_imports(source.tree, source.module, at_import=True))


def _imports(node: ast.AST, module: str, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (Import(name.name, child.lineno, at_import) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module} line {child.lineno}: relative import"
            base = child.module or ""
            modules = (f"{base}.{name.name}" for name in child.names)
            yield from (Import(name if name in sources() else base, child.lineno, at_import) for name in modules)
        elif not isinstance(child, ast.expr):
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, module, at_import and not inner)
