"""The limits of a request before anything in it is read. The operator may lower them; a client cannot raise them."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    body_bytes: int = 4 * MEBIBYTE
    in_flight_body_bytes: int = 256 * MEBIBYTE
    header_bytes: int = 32 << 10
    headers: int = 100
    header_seconds: float = 10.0
    """From the first byte of a connection or request to the end of its headers."""
    body_seconds: float = 30.0
    write_stall_seconds: float = 30.0
    """A client that takes nothing for so long is gone."""
    prompts: int = 64
    sequences: int = 512
    """Prompts x n of one call."""
    messages: int = 4096
    tools: int = 128
    top_logprobs: int = 20
    queued_token_bytes: int = 64 * MEBIBYTE


def connection_limit(spare: int = 16) -> int:
    """Connections this process can hold: 80 % of its file descriptors, and `spare` left beside those in use now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(1, min(int(soft * 0.8), soft - in_use - spare))
