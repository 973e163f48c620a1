"""What must not stand in the code: found in the syntax tree, so that comments may speak about it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.source_tree import ROOT, Source, imports, sources

MODULES = {
    "pickle": "no pickle: weights and messages are data, never code",
    "cPickle": "no pickle",
    "dill": "no pickle",
    "cloudpickle": "no pickle",
    "shelve": "no pickle",
    "marshal": "no pickle",
    "multiprocessing": "processes are started with subprocess and talk over a socket",
    "requests": "httpx in the client, nothing else",
    "starlette.middleware.base": "BaseHTTPMiddleware hides disconnects; middleware is pure ASGI",
}

CALLS = {
    "eval": "no code from data",
    "exec": "no code from data",
    "torch.load": "weights are safetensors",
    "yaml.unsafe_load": "the safe loader only",
    "os.system": "subprocess with a list of arguments",
}

METHODS = {"eval": "modules here have no training mode, so that eval( stays a word to search for"}

NETWORK = {
    "huggingface_hub": {"quire.engine.model_folder", "quire.engine.hub"},
    "httpx": {"quire.clients", "quire.benchmarks"},
    "aiohttp": {"quire.benchmarks"},
    "urllib.request": set(),
    "http.client": set(),
}
"""Packages that can open a connection, and the only modules that may import them."""

PURE = {
    "quire.engine.sequence",
    "quire.engine.block_pool",
    "quire.engine.queues",
    "quire.engine.scheduler",
    "quire.engine.core",
}
"""No torch, thread, socket, clock or randomness inside: a simulator drives the real code."""

IMPURE_MODULES = {"torch", "threading", "socket", "time", "random", "secrets", "asyncio", "os"}


def breaches(source: Source) -> list[str]:
    """Everything forbidden in one file, as `place:line: reason`."""
    return [f"{source.place}:{line}: {reason}" for line, reason in sorted(_breaches(source))]


def _breaches(source: Source) -> Iterator[tuple[int, str]]:
    for item in imports(source):
        for banned, reason in MODULES.items():
            if _within(item.module, banned):
                yield item.line, f"{banned}: {reason}"
        for package, allowed in NETWORK.items():
            if _within(item.module, package) and not any(_within(source.module, module) for module in allowed):
                yield item.line, f"{package}: network calls belong to the loader and the client"
        if source.module in PURE and item.module.split(".")[0] in IMPURE_MODULES:
            yield item.line, f"{item.module}: the core is pure"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            if name in CALLS:
                yield node.lineno, f"{name}: {CALLS[name]}"
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.lineno, f".{node.func.attr}(): {METHODS[node.func.attr]}"
            for keyword in node.keywords:
                switched_on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                if keyword.arg in ("shell", "trust_remote_code") and switched_on:
                    yield node.lineno, f"{keyword.arg}=True"
        if "BaseHTTPMiddleware" in (getattr(node, "id", None), getattr(node, "attr", None)):
            yield node.lineno, "BaseHTTPMiddleware hides disconnects; middleware is pure ASGI"


def _dotted(node: ast.expr) -> str:
    """`torch.load` of the expression torch.load; "" for anything but names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_nothing_forbidden_stands_in_the_code() -> None:
    assert [breach for source in sources().values() for breach in breaches(source)] == []


def test_the_pure_core_is_where_we_look_for_it() -> None:
    assert set(sources()) >= PURE


SNIPPETS = [
    ("quire.engine.x", "import pickle"),
    ("quire.engine.x", "from pickle import loads"),
    ("quire.engine.x", "def f():\n    import multiprocessing.shared_memory"),
    ("quire.engine.x", "import torch\ntorch.load('x')"),
    ("quire.engine.x", "eval('1')"),
    ("quire.engine.x", "exec('1')"),
    ("quire.engine.x", "model.eval()"),
    ("quire.engine.x", "import huggingface_hub"),
    ("quire.server.x", "import httpx"),
    ("quire.server.x", "from urllib.request import urlopen"),
    ("quire.server.x", "from starlette.middleware.base import BaseHTTPMiddleware"),
    ("quire.server.x", "app.add_middleware(base.BaseHTTPMiddleware)"),
    ("quire.server.x", "subprocess.run('ls', shell=True)"),
    ("quire.engine.x", "load(name, trust_remote_code=True)"),
    ("quire.engine.scheduler", "import time"),
    ("quire.engine.block_pool", "from random import random"),
]


@pytest.mark.parametrize(("module", "code"), SNIPPETS, ids=[code for _, code in SNIPPETS])
def test_each_ban_finds_what_it_bans(module: str, code: str) -> None:
    assert breaches(Source(module, ROOT / "x.py", ast.parse(code)))


def test_comments_and_harmless_names_are_left_alone() -> None:
    code = '"""Never pickle, never eval(."""\nimport httpx\nevaluate(1)\nsubprocess.run(["ls"], shell=False)\n'
    assert breaches(Source("quire.clients.x", Path(ROOT / "x.py"), ast.parse(code))) == []
