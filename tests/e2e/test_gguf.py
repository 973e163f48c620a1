"""`quire serve model.gguf`: the answers over HTTP are those of the folder that the file was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from support.checkpoints import tiny_checkpoint
from support.gguf_files import as_stored, write_gguf
from support.server import ServerProcess

CHAT = {"messages": [{"role": "user", "content": "Which river, which bridge?"}], "return_token_ids": True}
TEXT = {"prompt": "The small house by the river", "ignore_eos": True, "return_token_ids": True, "logprobs": 1}


def answers(model: Path) -> tuple[Any, ...]:
    """What a server of `model` says: a completion, a chat, its name."""
    with ServerProcess(str(model), "--dtype", "float32", "--served-model-name", "tiny") as server:
        common = {"model": "tiny", "temperature": 0, "max_tokens": 24}
        found = [
            httpx.post(f"{server.url}/v1/{route}", json=common | body, timeout=60).raise_for_status().json()["choices"]
            for route, body in (("completions", TEXT), ("chat/completions", CHAT))
        ]
        name = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    return *found, name


def test_answers_equal_those_of_the_folder(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    from_file = answers(write_gguf(folder, tmp_path / "model.gguf", "Q8_0"))
    assert from_file == answers(as_stored(folder, tmp_path / "again", "Q8_0"))
    assert len(from_file[0][0]["token_ids"]) == 24


def test_a_spoiled_file_ends_the_start_in_one_line(tmp_path: Path) -> None:
    path = write_gguf(tiny_checkpoint(tmp_path, "llama"), tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with ServerProcess(str(path), wait=False) as server:
        assert server.process.wait(60) == 3
    assert "error: model " in server.text
    assert "file truncated (model.gguf): expected" in server.text
    assert "Traceback" not in server.text
