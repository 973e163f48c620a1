"""Routes that clients of this field know and this version does not have: each refused by name, with what to do instead.

A test compares this table, with what is built, against the full list of routes that users expect.
"""

from __future__ import annotations

_OLLAMA = "the Ollama routes are not built yet; use the OpenAI routes under /v1"
_FILES = "files and batches are not built yet; send the requests one by one"

NOT_BUILT: dict[str, str] = {
    "/v1/responses": "the Responses API is not built yet; use /v1/chat/completions",
    "/v1/responses/{id}": "the Responses API is not built yet; use /v1/chat/completions",
    "/v1/embeddings": "embeddings are not built yet",
    "/v1/files": _FILES,
    "/v1/files/{id}": _FILES,
    "/v1/files/{id}/content": _FILES,
    "/v1/batches": _FILES,
    "/v1/batches/{id}": _FILES,
    "/v1/batches/{id}/cancel": _FILES,
    "/v1/messages": "the Anthropic routes are not built yet; use /v1/chat/completions",
    "/v1/messages/count_tokens": "the Anthropic routes are not built yet; use /tokenize",
    "/api/tags": _OLLAMA,
    "/api/show": _OLLAMA,
    "/api/ps": _OLLAMA,
    "/api/version": _OLLAMA,
    "/api/chat": _OLLAMA,
    "/api/generate": _OLLAMA,
    "/api/embed": _OLLAMA,
    "/tokenizer_info": "not built yet; /tokenize and /detokenize are",
    "/docs": "API pages are not built yet; docs/api.md names the routes",
    "/openapi.json": "an OpenAPI description is not built yet; docs/api.md names the routes",
    "/debug": "other debug routes are not built yet; /debug/flight is, and /load and /metrics have figures",
}
"""Path to reason."""
