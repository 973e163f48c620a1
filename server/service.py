"""What the routes share: settings, engine, tokenizer, and the steps from a checked request to the engine."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from quire.engine.messages import Ready
from quire.engine.outputs import GenerateRequest
from quire.engine.sampling_params import MAX_BAD_WORD_TOKENS
from quire.engine.text_worker import TextWorker
from quire.server.admission import Admission, Ticket
from quire.server.auth import KeyRing
from quire.server.errors import ApiError, unavailable
from quire.server.exchange import Exchange
from quire.server.fields import Kind, check_fields, ignored_header
from quire.server.generation import Engine
from quire.server.json_body import parse_object
from quire.server.limits import Limits
from quire.server.metrics import EngineView, Metrics
from quire.server.pulse import Pulse
from quire.server.request_options import RequestOptions
from quire.server.sampling import SamplingFields, SamplingRules
from quire.server.settings import ServerSettings
from quire.server.text_work import TextWork, Tokenizer, resolve_max_tokens

DEFAULTS_TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class SamplingDefaults(Protocol):
    """What the routes need of `quire.engine.model_folder.GenerationDefaults`: None where the model says nothing."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None


class Service:
    """One served model."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: Engine,
        tokenizer: Tokenizer,
        defaults: SamplingDefaults | None,
        limits: Limits,
        clock: Callable[[], float],
        worker: TextWorker | None,
        pulse: Pulse | None,
    ) -> None:
        self.settings, self.engine, self.limits, self.clock = settings, engine, limits, clock
        self.models = tuple(settings.served_model_name) or (model_name(settings),)
        self.keys = KeyRing(settings.read_api_keys())
        self.text = TextWork(tokenizer, worker)
        self.admission = Admission(limits, settings.max_num_queued_reqs, clock, self.keys.limits())
        view = EngineView(
            lambda: engine.statistics,
            lambda: engine.facts,
            lambda: engine.restarts,
            lambda: engine.hangs,
            lambda: engine.quarantines,
            engine.standstill,
            lambda: 0.0 if pulse is None else pulse.lag(),
        )
        self.metrics = Metrics(settings.metrics_prefix, self.models[0], view, clock)
        self.leaving = False
        """Told to stop: balancers are to look elsewhere, and what comes is still taken."""
        self.draining = False
        self._eos = tuple(sorted(tokenizer.eos_token_ids))
        wanted = defaults is not None and settings.generation_config == "auto"
        self._defaults: dict[str, Any] = {
            name: value for name in DEFAULTS_TAKEN if wanted and (value := getattr(defaults, name)) is not None
        }

    def facts(self) -> Ready:
        """Facts of the loaded engine. Raises the 503 that fits when it takes no work now."""
        self.check_accepting()
        facts = self.engine.facts
        if facts is None:
            raise unavailable("model_loading", "The model is still loading.", 2)
        return facts

    def check_accepting(self) -> None:
        """Raise model_loading, engine_restarting or server_draining unless new work is welcome."""
        state = self.engine.state
        if self.draining or state == "draining":
            raise draining()
        if state == "loading":
            raise unavailable("model_loading", "The model is still loading.", 2)
        if state == "failed":
            raise unavailable("engine_failed", "The engine could not be started.", 30)
        if state != "ready":
            raise unavailable("engine_restarting", "The engine is being restarted.", 2)

    def rules(self, facts: Ready) -> SamplingRules:
        """What sampling fields are checked against."""
        return SamplingRules(
            vocab_size=facts.vocab_size,
            max_logprobs=self.settings.max_logprobs,
            eos_token_ids=self._eos,
            defaults=self._defaults,
        )

    def fingerprint(self, facts: Ready) -> str:
        """Changes when the model, its precision or its kernels do."""
        text = "\n".join((self.models[0], facts.dtype, facts.cache_dtype, facts.device, facts.kernels))
        return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]

    async def read_body(
        self, exchange: Exchange, table: Mapping[str, Kind], ticket: Ticket
    ) -> tuple[dict[str, Any], list[str]]:
        """The body as an object with checked field names, and the names of the fields that are ignored."""
        body = parse_object(await exchange.body(ticket.take_body))
        return body, check_fields(body, table, strict=self.settings.strict)

    def enter(self, exchange: Exchange, facts: Ready) -> Ticket:
        """A place for a request that asks for tokens, before its body is read. Raises the 429 or 503 of a refusal."""
        self.admission.check_room(facts.max_num_seqs)
        return self.admission.enter(exchange.caller.key_id)

    def name_limits(self, exchange: Exchange, ticket: Ticket) -> None:
        """Tell a key with limits, in the answer's headers, what it has left."""
        if ticket.meter is not None:
            named = ticket.meter.headers(self.clock())
            exchange.extra_headers += [(name.encode(), value.encode()) for name, value in named]

    def name_ignored(self, exchange: Exchange, names: list[str]) -> None:
        """Name ignored fields in the answer's headers; under --strict, refuse them."""
        if names and self.settings.strict:
            text = f"Unknown field {names[0][:100]}; this server was started with --strict."
            raise ApiError("unknown_parameter", text, names[0][:100])
        if names:
            exchange.extra_headers.append(ignored_header(names))

    def check_report(self, options: RequestOptions, num_prompts: int) -> None:
        """Refuse a cache report that would show strangers' prompts, or would be about several."""
        if options.cache_report and num_prompts > 1:
            text = f"quire.cache_report is about one prompt, and this request has {num_prompts}; send them one by one."
            raise ApiError("unsupported_parameter", text, "quire.cache_report")
        if options.cache_report and not (self.keys or self.settings.is_local()):
            text = "quire.cache_report shows what cached prompts held: a server that is open to others needs API keys."
            raise ApiError("insufficient_permissions", text, "quire.cache_report")

    async def engine_request(
        self,
        prompt_token_ids: list[int],
        sampling: SamplingFields,
        options: RequestOptions,
        exchange: Exchange,
        facts: Ready,
        param: str,
    ) -> GenerateRequest:
        """One prompt on its way to the engine. Raises ApiError for a prompt that is empty or does not fit."""
        ids = truncated(prompt_token_ids, options, sampling.max_tokens, facts.max_model_len)
        if not ids:
            raise ApiError("empty_prompt", "The prompt has no tokens.", param)
        chat = param == "messages"
        default = self.settings.max_tokens if chat else self.settings.completions_max_tokens
        max_tokens = resolve_max_tokens(len(ids), sampling.max_tokens, default, facts.max_model_len, param)
        bad_words = await self.text.encode_words(sampling.bad_words)
        if any(len(word) > MAX_BAD_WORD_TOKENS for word in bad_words):
            raise ApiError("invalid_value", f"bad_words: one has more than {MAX_BAD_WORD_TOKENS} tokens.", "bad_words")
        params = sampling.complete(max_tokens, bad_words)
        if params.min_tokens > max_tokens:
            text = f"min_tokens {params.min_tokens} is more than max_tokens {max_tokens}."
            raise ApiError("conflicting_parameters", text, "min_tokens")
        deadline = None
        if options.deadline_ms is not None:
            deadline = exchange.came + options.deadline_ms / 1000
        return GenerateRequest(
            prompt_token_ids=ids,
            params=params,
            priority=options.priority,
            salt=self.keys.salt(exchange.caller, options.cache_salt),
            key_id=exchange.caller.key_id,
            weight=exchange.caller.weight,
            deadline=deadline,
            timings=options.timings,
            cache_report=options.cache_report,
        )


def draining() -> ApiError:
    """The refusal of a server that is told to stop; the connection ends, so that the next request goes elsewhere."""
    error = unavailable("server_draining", "The server is shutting down.", 5)
    error.close = True
    return error


def model_name(settings: ServerSettings) -> str:
    """What a model is called that was given no name: the last part of its path, or its hub name."""
    model = settings.model
    if model is None:
        return "starter"
    return model if not model.startswith(("/", ".", "~")) else model.rstrip("/").rpartition("/")[2] or model


def truncated(ids: list[int], options: RequestOptions, max_tokens: int | None, max_model_len: int) -> list[int]:
    """The end of the prompt that `truncate_prompt_tokens` keeps."""
    keep = options.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep == -1:
        keep = max(1, max_model_len - (max_tokens or 1))
    return ids[-keep:]


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(16)}"


def engine_id(answer_id: str, prompt: int) -> str:
    """What the engine calls a prompt of an answer: its hex digits, so that the client knows the request by them.

    A prompt's number is added to the first eight, by which the picture of the pool and the ledger name requests.
    """
    digits = answer_id.rpartition("-")[2]
    return f"{(int(digits[:8], 16) + prompt) % (1 << 32):08x}{digits[8:]}"
