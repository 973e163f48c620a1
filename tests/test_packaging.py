"""The wheel holds everything that serving needs: built from the sdist, installed elsewhere, served, asked."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.server import ServerProcess
from support.source_tree import FOLDERS, ROOT

from quire.kernels.cpu import build

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_SHIPPED = re.compile(
    r"\.venv|\.git|\..*_cache|\.hypothesis|__pycache__|build|dist|.*\.egg-info|docs|.*\.so|.*\.ckpt|checkpoint|tmp"
)
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"


def test_every_package_is_on_the_map() -> None:
    names = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_type_checkers_see_the_same_map() -> None:
    typing = ROOT / ".typing" / "quire"
    assert (typing / "__init__.py").resolve() == ROOT / "quire" / "__init__.py"
    for folder, package in FOLDERS.items():
        if folder != "quire":
            assert (typing / package.removeprefix("quire.")).resolve() == ROOT / folder


def test_one_torch_and_no_other_package_asks_for_one() -> None:
    wanted = [
        f"{distribution.name}: {requirement}"
        for distribution in importlib.metadata.distributions()
        for requirement in distribution.requires or []
        if re.match(r"torch(vision|audio)?\b(?!-)", requirement) and "extra ==" not in requirement
    ]
    assert set(wanted) == {"quire: torch<=2.13.0,>=2.11"}


def test_python_runs_without_the_current_folder() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("test", "serve"):
        recipe = makefile.split(f"\n{target}:")[1].split("\n\n")[0]
        assert "PYTHONSAFEPATH=1" in recipe
    assert "PYTHONSAFEPATH=1" in (ROOT / "Dockerfile").read_text()


def test_the_scripts_parse() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(run)], check=True)
    embedded = run.read_text().split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
    ast.parse(embedded)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the unpacked sdist of a copy of the tree, so that only what is shipped gets into it.

    Its compiler claims to know no AVX: one instruction set is compiled here, all of them are by `make install`.
    """
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-mavx*) exit 1 ;; esac\nexec {shlex.join(build.compiler())} "$@"\n')
    compiler.chmod(0o755)
    shutil.copytree(ROOT, folder / "tree", ignore=_not_shipped)
    _build("build_sdist", folder / "tree", folder, compiler)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    _build("build_wheel", unpacked, folder, compiler)
    (built,) = folder.glob("*.whl")
    return built


def _not_shipped(folder: str, names: list[str]) -> list[str]:
    """Of the tests only the simulator is shipped: it is a command for people too."""
    in_tests = Path(folder) == ROOT / "tests"
    return [name for name in names if NOT_SHIPPED.fullmatch(name) or (in_tests and name != "simulator")]


def _build(hook: str, tree: Path, target: Path, compiler: Path) -> None:
    command = [sys.executable, "-c", BUILD.format(hook), str(target)]
    environment = {**os.environ, "CC": str(compiler)}
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and of this environment only the dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched; the .pth files inside it, our editable install's among them, are not run.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_the_starter_and_the_defaults(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "quire/py.typed",
        "quire/kernels/cpu/libquire_cpu.so",
        "quire/server/config.yaml",
        "quire/server/playground/index.html",
        "quire/models/starter/config.json",
        "quire/models/starter/model.safetensors",
        "quire/models/starter/tokenizer.json",
        "quire/models/starter/README.md",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"quire", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


@pytest.fixture(scope="module")
def server(python: Path) -> Iterator[ServerProcess]:
    """`quire serve` as the wheel installed it."""
    where = subprocess.run(
        [str(python), "-P", "-c", "import quire.server; print(quire.server.__file__)"], capture_output=True, text=True
    )
    assert str(python.parents[1]) in where.stdout
    with ServerProcess(python=str(python)) as server:
        yield server


def test_the_installed_wheel_serves_the_starter(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    question = {"model": "starter", "messages": messages, "temperature": 0}
    answer = httpx.post(server.url + "/v1/chat/completions", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "42" in answer.json()["choices"][0]["message"]["content"]


README = (ROOT / "README.md").read_text()


EXAMPLES = dict(zip(("openai", "LLM", "Client"), re.findall(r"```python\n(.*?)```", README, re.DOTALL), strict=True))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_readme_run(name: str, python: Path, server: ServerProcess) -> None:
    code = EXAMPLES[name].replace("http://127.0.0.1:8000", server.url)
    environment = {**os.environ, "QUIRE_BASE_URL": server.url}
    run = subprocess.run([str(python), "-P", "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout) > 10


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_curl_line_of_the_readme_streams(server: ServerProcess) -> None:
    (line,) = re.findall(r"(curl -N .*?)\n\n", README, re.DOTALL)
    run = subprocess.run(
        ["bash", "-c", line.replace("http://127.0.0.1:8000", server.url)], capture_output=True, text=True, timeout=60
    )
    frames = [frame for frame in run.stdout.split("\n\n") if frame]
    assert len(frames) > 3, run.stderr
    assert frames[-1] == "data: [DONE]"
