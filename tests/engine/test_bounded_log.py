"""Logging that cannot hurt (F14)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from quire.engine.bounded_log import BoundedHandler


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("quire", logging.INFO, __file__, 1, text, arguments, None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_lines_arrive_in_order(pipe: tuple[int, int]) -> None:
    handler = BoundedHandler(pipe[1])
    for number in range(100):
        handler.emit(record("line %d \u00fc \ud800", number))
    handler.close()
    os.close(pipe[1])
    text = os.read(pipe[0], 1 << 16).decode()
    assert text.splitlines() == [f"line {number} \u00fc \\ud800" for number in range(100)]
    assert handler.dropped == 0


def test_full_disk() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    handler = BoundedHandler(descriptor)
    for _ in range(10):
        handler.emit(record("lost"))
    handler.close()
    os.close(descriptor)
    assert handler.dropped == 10


def test_closed_pipe(pipe: tuple[int, int]) -> None:
    handler = BoundedHandler(pipe[1])
    os.close(pipe[0])
    handler.emit(record("lost"))
    handler.close()
    assert handler.dropped == 1


def test_full_queue_drops_and_never_waits(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], True)
    handler = BoundedHandler(pipe[1], max_lines=5)
    # Nobody reads: the pipe takes 64 KiB, the queue five lines, and the rest is counted.
    for _ in range(50):
        handler.emit(record("x" * 20_000))
    assert handler.dropped >= 30
    while handler._writer.is_alive() and not handler._lines.empty():
        os.read(pipe[0], 1 << 16)
    handler.close()


def test_record_whose_arguments_do_not_fit(pipe: tuple[int, int]) -> None:
    handler = BoundedHandler(pipe[1])
    handler.emit(record("%d", "no number"))
    handler.close()
    assert handler.dropped == 1
