"""Quire: an LLM inference server with a paged KV cache.

The public face, loaded lazily: importing `quire` costs milliseconds, and no torch.

    from quire import LLM, SamplingParams      # offline, in this process
    from quire import Client, AsyncClient      # talk to a running server
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.clients import AsyncClient, Client
    from quire.engine.llm import LLM
    from quire.engine.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncClient", "Client", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "quire.engine.llm",
    "SamplingParams": "quire.engine.sampling_params",
    "Client": "quire.clients",
    "AsyncClient": "quire.clients",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'quire' has no attribute {name!r}")
