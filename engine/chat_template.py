"""Chat templates: messages to prompt text, with Jinja in a sandbox.

The environment is the one that model folders are written for: trimmed blocks, loop controls, a `tojson` that escapes
nothing but what JSON demands, `raise_exception`, `strftime_now`, and `{% generation %}` as a tag without effect.
Output is capped at MAX_OUTPUT_CHARACTERS; what else a template may do wrong (loop for ever, fill the memory) is the
business of `quire.engine.text_worker`, where it can be killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARACTERS = 4 << 20


class ChatTemplateError(ValueError):
    """The template refused the messages (its own text), is broken, or did something that the sandbox forbids."""


class ChatTemplateRefusal(ChatTemplateError):
    """The template called `raise_exception`: it is sound, and these messages are none that it takes."""


class ChatTemplate:
    """One compiled template; raises ChatTemplateError with the line when the source has a syntax error.

    `special_tokens` are the names it may use (`bos_token`, `eos_token`, ...).
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise ChatTemplateError(f"it cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text; raises ChatTemplateError.

        Keys of a message whose value is None are left out. With `continue_final_message` the text ends where the last
        message's content ends, and no generation prompt is added.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        marker = ""
        if continue_final_message:
            marker = _unused_character(chat)
            content = chat[-1].get("content") if chat else None
            if not isinstance(content, str):
                raise ChatTemplateError("continue_final_message needs a last message whose content is a string")
            chat[-1] = {**chat[-1], "content": content + marker + " "}
        text = self._run(
            {
                **self.special_tokens,
                "documents": None,
                **(template_kwargs or {}),
                "messages": chat,
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
        )
        return _cut_at(text, marker) if continue_final_message else text

    def _run(self, variables: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise ChatTemplateError(f"the chat template wrote more than {MAX_OUTPUT_CHARACTERS} characters")
        except ChatTemplateError:
            raise
        except Exception as error:  # the template is foreign code: whatever it raises is its fault
            raise ChatTemplateError(f"{type(error).__name__}: {str(error) or 'no reason given'}") from error
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's tokens for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateRefusal(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _unused_character(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in text)


def _cut_at(text: str, marker: str) -> str:
    """`text` up to the last `marker`; without trailing space where the template stripped the message."""
    end = text.rfind(marker)
    if end < 0:
        raise ChatTemplateError("continue_final_message: the template does not show the last message's content")
    return text[:end] if text.startswith(marker + " ", end) else text[:end].rstrip()
