"""POST /v1/chat/completions, POST /v1/completions, GET /v1/models."""

from __future__ import annotations

import logging
import time

import msgspec

from quire.engine.messages import Ready
from quire.engine.outputs import GenerateRequest
from quire.server.admission import Ticket
from quire.server.chat import ChatAnswer
from quire.server.chat_request import ChatRequest, read_chat
from quire.server.completion_request import CompletionRequest, read_completion
from quire.server.completions import CompletionAnswer, EchoedPrompt
from quire.server.exchange import Exchange
from quire.server.explanation import Arrival, Explanation
from quire.server.fields import CHAT_FIELDS, COMPLETION_FIELDS
from quire.server.generation import Answer, deliver
from quire.server.metrics import CallTimer
from quire.server.request_options import RequestOptions, model_not_found
from quire.server.service import Service, engine_id, new_id
from quire.server.text_work import check_byte_bound

logger = logging.getLogger("quire.server")


class OpenAIRoutes:
    """The handlers; each reads, checks, reserves, tokenizes and delivers, in that order."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def chat_completions(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        service = self.service
        came = service.clock()
        facts = service.facts()
        with service.enter(exchange, facts) as ticket:
            body, ignored = await service.read_body(exchange, CHAT_FIELDS, ticket)
            arrival = Arrival(came, service.clock())
            rules, auto_tools = service.rules(facts), service.settings.enable_auto_tool_choice
            request = read_chat(body, service.models, rules, service.limits, auto_tools=auto_tools)
            service.name_ignored(exchange, ignored + request.ignored)
            service.check_report(request.options, 1)
            if request.options.truncate_prompt_tokens is None:
                num_bytes = sum(len(message["content"].encode()) for message in request.messages)
                check_byte_bound(num_bytes, service.text.tokenizer, facts.max_model_len, "messages")
            self._reserve(ticket, request.sampling.params.n, request.options, facts)
            await exchange.unless_client_leaves(self._chat(exchange, request, facts, ticket, arrival), ticket.shed)

    async def completions(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        service = self.service
        came = service.clock()
        facts = service.facts()
        with service.enter(exchange, facts) as ticket:
            body, ignored = await service.read_body(exchange, COMPLETION_FIELDS, ticket)
            arrival = Arrival(came, service.clock())
            request = read_completion(body, service.models, service.rules(facts), service.limits)
            service.name_ignored(exchange, ignored)
            service.check_report(request.options, len(request.prompts))
            if request.options.truncate_prompt_tokens is None:
                for prompt in request.prompts:
                    if isinstance(prompt, str):
                        num_bytes = len(prompt.encode())
                        check_byte_bound(num_bytes, service.text.tokenizer, facts.max_model_len, "prompt")
            self._reserve(ticket, len(request.prompts) * request.sampling.params.n, request.options, facts)
            await exchange.unless_client_leaves(self._complete(exchange, request, facts, ticket, arrival), ticket.shed)

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        cards = [self._card(name) for name in self.service.models]
        await exchange.respond_json({"object": "list", "data": cards})

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{id}."""
        name = exchange.path_params["name"]
        if name not in self.service.models:
            raise model_not_found(name)
        await exchange.respond_json(self._card(name))

    async def _chat(
        self, exchange: Exchange, request: ChatRequest, facts: Ready, ticket: Ticket, arrival: Arrival
    ) -> None:
        service = self.service
        ids = await service.text.encode_chat(
            request.messages,
            tools=request.tools.offered,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            template_kwargs=request.template_kwargs,
        )
        generate = await service.engine_request(ids, request.sampling, request.options, exchange, facts, "messages")
        answer = ChatAnswer(new_id("chatcmpl"), service.fingerprint(facts), request, generate.prompt_token_ids)
        await self._deliver(exchange, [generate], answer, request.options, ticket, arrival)

    async def _complete(
        self, exchange: Exchange, request: CompletionRequest, facts: Ready, ticket: Ticket, arrival: Arrival
    ) -> None:
        service = self.service
        options = request.options
        generates: list[GenerateRequest] = []
        echoed: list[EchoedPrompt] = []
        for prompt in request.prompts:
            ids = prompt
            if isinstance(ids, str):
                ids = await service.text.encode(ids, options.add_special_tokens is not False)
            generate = await service.engine_request(ids, request.sampling, options, exchange, facts, "prompt")
            text = prompt if isinstance(prompt, str) and len(generate.prompt_token_ids) == len(ids) else None
            if request.echo and text is None:
                skip = request.sampling.params.skip_special_tokens
                text = await service.text.decode(generate.prompt_token_ids, skip)
            generates.append(generate)
            echoed.append(EchoedPrompt(text or "", generate.prompt_token_ids))
        answer = CompletionAnswer(new_id("cmpl"), service.fingerprint(facts), request, echoed)
        await self._deliver(exchange, generates, answer, options, ticket, arrival)

    async def _deliver(
        self,
        exchange: Exchange,
        requests: list[GenerateRequest],
        answer: Answer,
        options: RequestOptions,
        ticket: Ticket,
        arrival: Arrival,
    ) -> None:
        service = self.service
        requests = [
            msgspec.structs.replace(request, request_id=engine_id(answer.id, prompt))
            for prompt, request in enumerate(requests)
        ]
        lengths = [len(request.prompt_token_ids) for request in requests]
        n = requests[0].params.n
        ticket.take_tokens(sum(lengths), n * sum(request.params.max_tokens for request in requests))
        service.name_limits(exchange, ticket)
        if service.settings.enable_log_requests:
            await self._log(exchange, requests)
        timer = CallTimer(service.metrics, arrival.at, lengths, n)
        explanation = Explanation(
            options, arrival, service.clock, len(requests) * n, requests[0].prompt_token_ids, service.text.tokenizer
        )
        try:
            await deliver(exchange, service.engine, requests, answer, options, timer, explanation)
        finally:
            ticket.used_tokens = sum(lengths) + timer.num_output_tokens

    async def _log(self, exchange: Exchange, requests: list[GenerateRequest]) -> None:
        """Only under --enable-log-requests: the one place that writes what a client sent."""
        for request in requests:
            prompt = await self.service.text.decode(request.prompt_token_ids, skip_special_tokens=False)
            key_id = exchange.caller.key_id or "-"
            logger.info("request %s by %s: %s, prompt %s", exchange.request_id, key_id, request.params, ascii(prompt))

    def _reserve(self, ticket: Ticket, sequences: int, options: RequestOptions, facts: Ready) -> None:
        seconds = None if options.deadline_ms is None else options.deadline_ms / 1000
        ticket.take_sequences(sequences, facts.max_num_seqs, seconds)

    def _card(self, name: str) -> dict[str, object]:
        card: dict[str, object] = {"id": name, "object": "model", "created": _STARTED, "owned_by": "quire"}
        facts = self.service.engine.facts
        if facts is not None:
            card["max_model_len"] = facts.max_model_len
        return card


_STARTED = int(time.time())
