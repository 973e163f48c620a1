"""`quire bench serve --verify` against a real server: nothing on a clean one, and a wrong block id is caught."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.server import ServerProcess

LOAD = (
    "--num-prompts 8 --random-input-len 24 --random-output-len 8 --random-range-ratio 0.4 --random-prefix-len 20 "
    "--ignore-eos --verify --save-result --result-filename result.json"
)


def bench(server: ServerProcess, folder: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    command = [sys.executable, "-m", "quire.clients.cli", "bench", "serve", "--base-url", server.url, *LOAD.split()]
    run = subprocess.run(
        [*command, "--result-dir", str(folder), *more], capture_output=True, text=True, timeout=120, check=False
    )
    return run.returncode, run.stdout + run.stderr, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(("backend", "temperature"), [("openai", "0"), ("openai-chat", "1")])
def test_answers_under_load_are_those_of_the_same_requests_alone(
    starter: ServerProcess, tmp_path: Path, backend: str, temperature: str
) -> None:
    code, text, found = bench(starter, tmp_path, "--backend", backend, "--temperature", temperature)
    assert code == 0, text
    assert "Verified 8 answers against solo runs, by token ids: 0 mismatches, 0 near ties" in text
    assert found["completed"] == 8
    assert found["max_concurrent_requests"] > 1
    if backend == "openai":
        assert 8 * (20 + 14) <= found["total_input_tokens"] <= 8 * (20 + 34)


def test_a_wrong_block_id_is_caught(tmp_path: Path) -> None:
    """Its answers look like any others; only the comparison shows it."""
    with ServerProcess(faults={"table.wrong": "2"}) as server:
        code, text, found = bench(server, tmp_path, "--random-prefix-len", "0")
    assert code == 1
    assert (found["completed"], found["failed"]) == (8, 0)
    assert len(found["verify"]["mismatches"]) >= 3
    assert re.search(r"mismatch: request \d+, token \d+: \d+ under load, \d+ '.*' alone \(margin [\d.e-]+\)", text), (
        text
    )
