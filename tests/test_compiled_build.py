"""Quire builds with and without a C compiler, and says in one line what that means."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.source_tree import ROOT

from quire.kernels.cpu import build


def test_building_without_a_compiler_warns_once(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "setup.py", "--quiet", "build_kernels", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "CC": "/nonexistent"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stderr.splitlines() if "kernels" in line] == [
        "warning: the compiled CPU kernels were not built (/nonexistent: no such compiler); PyTorch serves instead"
    ]
    assert not list(tmp_path.rglob("*.so"))


def test_the_compilers_first_error_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-x*) exit 0 ;; esac\necho "norm.c:1:1: error: no" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(build.NotBuilt, match=re.escape(f"{compiler}: norm.c:1:1: error: no")):
        build.build(tmp_path / build.LIBRARY_NAME)


def test_the_image_has_a_compiler_where_it_builds_and_openmp_where_it_serves() -> None:
    first, last = re.split(r"^FROM .*$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    assert re.search(r"apt-get install .*gcc libc6-dev", first)
    assert "setup.py" in re.search(r"^COPY pyproject.*$", first, re.MULTILINE)[0]
    assert re.search(r"apt-get install .*libgomp1", last)


def test_make_compiles_what_changed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("install", "test", "bench", "serve"):
        assert "$(VENV)/kernels" in re.search(rf"^{target}: (.*)$", makefile, re.MULTILINE)[1]
    assert re.search(r"^NATIVE := \$\(wildcard kernels/cpu/native/\*", makefile, re.MULTILINE)
    assert "setup.py" in re.search(r"^\$\(VENV\)/installed-dev: (.*)$", makefile, re.MULTILINE)[1]
