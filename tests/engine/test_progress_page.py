"""The page of counters that both processes map."""

import os
import subprocess
import sys
import time

from quire.engine.progress_page import MAX_STEP_IDS, ProgressPage


def test_a_child_writes_and_we_read_also_after_its_death() -> None:
    page = ProgressPage.create()
    assert page.read().state == "starting"
    assert page.read().stamp == 0.0
    code = (
        "import os, signal, sys\n"
        "from quire.engine.progress_page import ProgressPage\n"
        "page = ProgressPage(int(sys.argv[1]))\n"
        "page.set_state('loading'); page.tick()\n"
        "page.begin_step(['a' * 32]); page.tick(); page.end_step()\n"
        "page.begin_step(['b' * 32, 'short', 'c' * 40]); page.tick()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = time.monotonic()
    child = subprocess.run([sys.executable, "-c", code, str(page.fd)], pass_fds=[page.fd], check=False)
    assert child.returncode == -9
    seen = page.read()
    assert (seen.state, seen.steps, seen.ticks) == ("stepping", 1, 4)
    assert seen.step_request_ids == ("b" * 32, "short", "c" * 32)
    assert before < seen.stamp < time.monotonic()
    page.close()
    os.close(page.fd)


def test_more_requests_than_the_page_has_places_for() -> None:
    page = ProgressPage.create()
    page.begin_step([f"{i:032x}" for i in range(MAX_STEP_IDS + 10)])
    assert len(page.read().step_request_ids) == MAX_STEP_IDS
    page.end_step()
    assert page.read().step_request_ids == ()
    page.close()
    os.close(page.fd)
