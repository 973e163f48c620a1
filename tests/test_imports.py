"""Imports go one way: kernels < engine.models < engine; server takes only what is torch-free; clients stand alone."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
from support.source_tree import Source, imports, sources

LEAVES = {"quire.engine.errors", "quire.engine.config"}
"""Values that every layer of the engine may read."""

ALLOWED = {
    "quire.kernels": ("quire.kernels",),
    "quire.engine.models": ("quire.engine.models", "quire.kernels"),
    "quire.engine": ("quire.engine", "quire.kernels"),
    "quire.server": ("quire.server", "quire.engine"),
    "quire.clients": ("quire.clients",),
    "quire.benchmarks": ("quire.benchmarks", "quire.clients", "quire.engine", "quire.kernels"),
    "quire.models": ("quire.models",),
    "quire.simulator": ("quire.simulator", "quire.engine", "quire.clients"),
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> str | None:
    """The innermost layer of a module; None for `quire` itself."""
    layers = [name for name in ALLOWED if within(module, name)]
    return max(layers, key=len) if layers else None


def breaches(source: Source) -> list[str]:
    """Every import of the file that its layer does not allow."""
    own = layer(source.module)
    if own is None:
        return []
    return [
        f"{source.place}:{item.line}: {own} must not import {item.module}"
        for item in imports(source)
        if within(item.module, "quire")
        and item.module not in {"quire", *LEAVES}
        and not any(within(item.module, package) for package in ALLOWED[own])
        and not (own == "quire.clients" and not item.at_import)
    ]


def test_imports_go_one_way() -> None:
    assert [breach for source in sources().values() for breach in breaches(source)] == []


def test_no_plain_imports_of_the_top_level_folders() -> None:
    """`from engine import ...` would work from the root of the repository and nowhere else."""
    folders = {"engine", "kernels", "server", "clients", "benchmarks"}
    plain = [
        f"{source.place}:{item.line}: {item.module}"
        for source in sources().values()
        for item in imports(source)
        if item.module.split(".")[0] in folders
    ]
    assert plain == []


@functools.cache
def reaches_torch(module: str) -> str | None:
    """The chain of imports by which importing the module imports torch; None when it does not."""
    source = sources().get(module)
    if source is None:
        return module if module.split(".")[0] in {"torch", "safetensors.torch", "transformers"} else None
    for item in imports(source):
        if item.at_import and item.module != module and (chain := reaches_torch(item.module)):
            return f"{module} > {chain}"
    return None


@pytest.mark.parametrize("package", ["quire.server", "quire.clients"])
def test_no_torch_in_the_http_process(package: str) -> None:
    chains = [reaches_torch(module) for module in sources() if within(module, package)]
    assert [chain for chain in chains if chain] == []


def test_the_chain_to_torch_is_found_where_there_is_one() -> None:
    assert reaches_torch("quire.engine.runner") is not None


FRESH = """
import sys
before = set(sys.modules)
import {module}
new = set(sys.modules) - before
print(*sorted(name for name in {names!r} if name in new))
print(len(new))
"""


def fresh_import(module: str, names: list[str]) -> tuple[list[str], int]:
    """Import in a new interpreter: which of `names` that loaded, and how many modules in all."""
    code = FRESH.format(module=module, names=names)
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found, count = run.stdout.splitlines()
    return found.split(), int(count)


def test_the_server_imports_no_torch() -> None:
    assert fresh_import("quire.server.app", ["torch", "transformers", "numpy.testing", "huggingface_hub"])[0] == []


def test_importing_quire_is_light() -> None:
    heavy, count = fresh_import("quire", ["torch", "httpx", "msgspec", "pydantic"])
    assert heavy == []
    assert count < 60


def test_the_command_line_loads_a_command_when_it_is_called() -> None:
    heavy, count = fresh_import("quire.clients.cli", ["torch", "httpx", "pydantic", "fastapi", "argparse"])
    assert heavy == []
    assert count < 80
