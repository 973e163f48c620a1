"""`quire serve` as a process: how it fails to start, and how it stops. What it answers is in tests/e2e."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.server import ServerProcess, wait_until

from quire.engine.messages import Ready
from quire.server.loading import LoadProgress, start_lines


def test_the_http_side_imports_no_torch() -> None:
    """Nor anything else that takes long. By name, because seconds prove nothing on a busy machine."""
    heavy = "torch numpy transformers huggingface_hub safetensors"
    code = (
        "import sys, quire.server.app, quire.server.serve\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_taken_port_is_said_before_anything_is_loaded() -> None:
    """F10."""
    with ServerProcess(wait=False) as first:
        wait_until(lambda: "Model starter" in first.text, "the first one is bound")
        second = subprocess.run(
            [sys.executable, "-m", "quire.clients.cli", "serve", "--port", str(first.port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 4
        assert f"port {first.port}" in second.stderr
        assert f"process {first.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert "Model starter" not in second.stderr
        # F09: told to stop while loading.
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(10) == 143


def test_model_that_is_not_there(tmp_path: Path) -> None:
    """M01: one line, exit 3, and the port is closed again."""
    with ServerProcess(str(tmp_path / "none"), wait=False) as server:
        assert server.process.wait(60) == 3
        server.stop()
        error = [line for line in server.output if line.startswith("error: ")]
        assert len(error) == 1
        assert "fix: " in error[0]
        assert "Traceback" not in server.text
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_start_lines() -> None:
    facts = Ready(
        max_model_len=2048,
        vocab_size=1000,
        num_blocks=256,
        block_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        weights_bytes=3 << 29,
        kv_cache_bytes=5 << 20,
        dtype="bfloat16",
        cache_dtype="float16",
        device="cpu",
        kernels="cpu, because",
        seconds={"import": 1.0, "weights": 0.5},
        notes=("fewer than asked for",),
    )
    text = "\n".join(start_lines(facts, 2.0))
    assert "Model weights: 1.50 GiB, loaded in 0.50 s (bfloat16, cpu)" in text
    assert "KV cache memory: 5.0 MiB, 256 blocks of 16 tokens" in text
    assert "KV cache size: 4,096 tokens" in text
    assert "Maximum concurrency for 2,048 tokens per request: 2.00x" in text
    assert "Kernels: cpu, because" in text
    assert text.endswith("fewer than asked for")


class Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self.text, self._is_terminal = "", is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_shows_on_terminals_only(is_terminal: bool) -> None:
    from quire.engine.messages import Progress

    out = Terminal(is_terminal)
    progress = LoadProgress(out)  # type: ignore[arg-type]
    progress.download("model.safetensors", 1, 4)
    assert progress.stage == "Downloading model.safetensors: 25%"
    progress.load(Progress("weights", 1, 2))
    progress.close()
    assert ("25%" in out.text) is is_terminal
    assert ("Loading weights" in out.text) is is_terminal
    assert out.text.endswith("\n") is is_terminal
