"""Dumps to a file: private, few, without texts, and also while the loop of the engine stands still (F02)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support.bench import Bench, prompt

from quire.engine.dumps import MAX_FILES, Dumps
from quire.engine.messages import Add, unpack_ids
from quire.engine.recorder import FlightRecorder, Recording


def recorder() -> FlightRecorder:
    bench = Bench()
    recorder = FlightRecorder(bench.scheduler, 1, lambda: 0.0)
    bench.add("a", prompt(12), max_tokens=2)
    recorder.took(bench.adds["a"], 0.0)
    return recorder


def test_a_dump_is_private_and_tells_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dumps = Dumps(tmp_path)
    assert dumps.write("crash") is None, "nothing is recorded yet"
    dumps.recorder = recorder()
    path = dumps.write("crash")
    assert path is not None
    assert str(path) in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600
    recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    assert recording.reason == "crash"
    _, add = recording.turns[0].messages[0]
    assert isinstance(add, Add)
    assert not set(unpack_ids(add.prompt_token_ids)) & set(prompt(12))


def test_dumps_do_not_fill_the_disk(tmp_path: Path) -> None:
    dumps = Dumps(tmp_path)
    dumps.recorder = recorder()
    (tmp_path / "other.json").write_text("{}")
    paths = [dumps.write("crash") for _ in range(MAX_FILES + 5)]
    assert len(list(tmp_path.glob("quire-flight-*"))) == MAX_FILES
    assert paths[-1] is not None
    assert paths[-1].exists()
    assert (tmp_path / "other.json").exists()


def test_a_dump_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dumps = Dumps(tmp_path / "nowhere")
    dumps.recorder = recorder()
    assert dumps.write("crash") is None
    assert "could not be written down" in caplog.text


HANGING = """
import sys, threading
from pathlib import Path
from quire.engine.dumps import Dumps
from quire.engine.block_pool import BlockPool
from quire.engine.recorder import FlightRecorder
from quire.engine.scheduler import Scheduler, SchedulerConfig
config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=8)
dumps = Dumps(Path(sys.argv[1]))
dumps.listen()
dumps.recorder = FlightRecorder(Scheduler(config, BlockPool(8, 4)), 1, lambda: 0.0)
print("hangs", flush=True)
threading.Event().wait()
"""


def test_a_loop_that_stands_still_is_dumped(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGUSR2)
        line = process.stderr.readline()
        process.kill()
    (path,) = tmp_path.iterdir()
    assert str(path) in line
    assert path.name.startswith("quire-flight-hang-")
