"""The chat template as the server will render it: Jinja's sandbox with Hugging Face's three additions."""

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from quire.models.starter.data.world import Message, Tool

FOLDER = Path(__file__).parent


def raise_exception(text: str) -> None:
    raise TemplateError(text)


def tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def template() -> Template:
    """The folder's template, compiled."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now(UTC).strftime(pattern)
    return environment.from_string((FOLDER / "chat_template.jinja").read_text())


def render(messages: list[Message], tools: list[Tool] | None = None, add_generation_prompt: bool = False) -> str:
    """The dialogue as text."""
    return template().render(messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must be there."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}; train it with quire.models.starter.tokenizer_training")
    return found
