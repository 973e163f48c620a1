"""POST /tokenize and POST /detokenize: what the server's own tokenizer makes of a text, a chat, or token ids."""

from __future__ import annotations

from typing import Any

from quire.engine.messages import Ready
from quire.server.chat_messages import read_messages
from quire.server.chat_request import read_template_kwargs, read_template_switches
from quire.server.completion_request import check_token_ids
from quire.server.errors import ApiError
from quire.server.exchange import Exchange
from quire.server.fields import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from quire.server.reader import Reader
from quire.server.request_options import read_model
from quire.server.service import Service
from quire.server.text_work import check_byte_bound
from quire.server.tools import read_tools

_CONTEXTS = 16
"""A text of so many contexts may be counted; longer ones are refused before they are tokenized."""


class TextRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def tokenize(self, exchange: Exchange) -> None:
        """POST /tokenize with `prompt` or `messages`: {count, max_model_len, tokens}."""
        service = self.service
        facts = service.facts()
        with service.admission.enter(exchange.caller.key_id) as ticket:
            body, ignored = await service.read_body(exchange, TOKENIZE_FIELDS, ticket)
            service.name_ignored(exchange, ignored)
            reader = Reader(body)
            if reader.get("model") is not None:
                read_model(reader, service.models)
            strings = reader.boolean("return_token_strs")
            check_byte_bound(ticket.body_bytes, service.text.tokenizer, facts.max_model_len * _CONTEXTS, "prompt")
            ids = await self._ids(reader, facts)
            answer: dict[str, Any] = {"count": len(ids), "max_model_len": facts.max_model_len, "tokens": ids}
            if strings:
                answer["token_strs"] = [service.text.tokenizer.token_text(token_id) for token_id in ids]
            await exchange.respond_json(answer)

    async def detokenize(self, exchange: Exchange) -> None:
        """POST /detokenize with `tokens`: {prompt}."""
        service = self.service
        facts = service.facts()
        with service.admission.enter(exchange.caller.key_id) as ticket:
            body, ignored = await service.read_body(exchange, DETOKENIZE_FIELDS, ticket)
            service.name_ignored(exchange, ignored)
            reader = Reader(body)
            if reader.get("model") is not None:
                read_model(reader, service.models)
            tokens = reader.required("tokens")
            if not isinstance(tokens, list):
                raise reader.wrong_type("tokens", tokens, "a list of token ids")
            check_token_ids(tokens, "tokens", facts.vocab_size)
            text = await service.text.decode(tokens, reader.boolean("skip_special_tokens"))
            await exchange.respond_json({"prompt": text})

    async def _ids(self, reader: Reader, facts: Ready) -> list[int]:
        if reader.get("messages") is not None:
            if reader.get("prompt") is not None:
                raise ApiError("conflicting_parameters", "Send prompt or messages, not both.", "prompt")
            messages = read_messages(reader, self.service.limits, [])
            add_generation_prompt, continue_final = read_template_switches(reader, messages)
            return await self.service.text.encode_chat(
                messages,
                tools=read_tools(reader, self.service.limits.tools, auto=True).offered,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final,
                template_kwargs=read_template_kwargs(reader),
            )
        prompt = reader.required("prompt")
        if not isinstance(prompt, str):
            raise reader.wrong_type("prompt", prompt, "text")
        return await self.service.text.encode(prompt, reader.boolean("add_special_tokens", default=True))
