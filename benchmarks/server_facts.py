"""What a server tells about itself: its model's name, and how it tokenizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from quire.benchmarks.words import Encode


async def first_model(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], kind: str) -> str:
    """The model to ask for when nobody chose one. Raises ValueError, or what aiohttp raises."""
    path = "/api/tags" if kind == "ollama" else "/v1/models"
    async with http.get(url + path, headers=headers) as response:
        if response.status != 200:
            raise ValueError(f"GET {path} answered {response.status}; give --model")
        found = await response.json(content_type=None)
    listed = found.get("models" if kind == "ollama" else "data") if isinstance(found, dict) else None
    if not listed:
        raise ValueError(f"GET {path} names no model; give --model")
    return str(listed[0]["name" if kind == "ollama" else "id"])


async def server_encode(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], model: str) -> Encode | None:
    """The server's tokenizer, through POST /tokenize; None where there is none.

    Most servers call the text `prompt`; llama.cpp calls it `content` and answers anything else with no tokens.
    """

    async def post(field: str, text: str) -> list[int] | None:
        body: dict[str, Any] = {field: text}
        body |= {"model": model, "add_special_tokens": False} if field == "prompt" else {}
        async with http.post(url + "/tokenize", json=body, headers=headers) as response:
            if response.status != 200:
                return None
            found = await response.json(content_type=None)
        tokens = found.get("tokens") if isinstance(found, dict) else None
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None

    for field in ("prompt", "content"):
        if await post(field, " time"):

            async def encode(text: str, field: str = field) -> list[int]:
                tokens = await post(field, text)
                if tokens is None:
                    raise ValueError(f"{url}/tokenize stopped answering")
                return tokens

            return encode
    return None


async def server_version(http: aiohttp.ClientSession, url: str) -> str | None:
    """What it says it is: GET /version, or llama.cpp's GET /props; None where it says nothing."""
    for path, field in (("/version", "version"), ("/props", "build_info")):
        try:
            async with http.get(url + path) as response:
                found = await response.json(content_type=None) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            continue
        if isinstance(found, dict) and found.get(field):
            return str(found[field])
    return None
