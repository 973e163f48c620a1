"""The Python client, blocking and asyncio, and the command line. Stands alone: nothing else of Quire is imported.

Names are loaded when first used: `quire serve` starts without httpx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.clients.async_client import AsyncClient, AsyncStream
    from quire.clients.client import Client, Stream
    from quire.clients.errors import (
        AuthenticationFailed,
        BadRequest,
        ClientError,
        ConnectionFailed,
        NotFound,
        PermissionDenied,
        ProtocolError,
        RateLimited,
        ServerError,
        StatusError,
        StreamFailed,
        TimedOut,
        Unavailable,
    )
    from quire.clients.types import (
        Chat,
        ChatChoice,
        Completion,
        CompletionChoice,
        Delta,
        Message,
        Model,
        ToolCall,
        Usage,
    )

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AuthenticationFailed",
    "BadRequest",
    "Chat",
    "ChatChoice",
    "Client",
    "ClientError",
    "Completion",
    "CompletionChoice",
    "ConnectionFailed",
    "Delta",
    "Message",
    "Model",
    "NotFound",
    "PermissionDenied",
    "ProtocolError",
    "RateLimited",
    "ServerError",
    "StatusError",
    "Stream",
    "StreamFailed",
    "TimedOut",
    "ToolCall",
    "Unavailable",
    "Usage",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncStream": "async_client",
    "Client": "client",
    "Stream": "client",
    **dict.fromkeys(
        ("Chat", "ChatChoice", "Completion", "CompletionChoice", "Delta", "Message", "Model", "ToolCall", "Usage"),
        "types",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'quire.clients' has no attribute {name!r}")
    return getattr(import_module(f"quire.clients.{_HOMES.get(name, 'errors')}"), name)
