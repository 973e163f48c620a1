"""Quire without a server: `LLM` runs the engine in this process.

    from quire import LLM, SamplingParams

    with LLM("path/to/model") as llm:
        for answer in llm.generate(["One, two,", "Once upon a time"], SamplingParams(max_tokens=32)):
            print(answer.outputs[0].text)

The same scheduler, runner, tokenizer and detokenizer as behind the HTTP routes; only the process line is missing.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from tqdm import tqdm

from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.detokenizer import Detokenizer
from quire.engine.messages import Add, Cancel, Failure, FinishReason, OutputRow, pack_ids
from quire.engine.model_folder import STARTER, GenerationDefaults, resolve_model
from quire.engine.model_source import read_config, read_defaults
from quire.engine.outputs import TextDelta, TokenText
from quire.engine.process import build_engine
from quire.engine.sampling_params import SamplingParams, check, prepare
from quire.engine.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class CompletionOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One choice. `failure` is set exactly when `finish_reason` is "error"."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    """The stop string or stop token id that matched; None for EOS."""
    logprobs: tuple[TokenText, ...] | None = None
    failure: Failure | None = None


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and its n choices, in the order of their index."""

    prompt: str | None
    """None for a prompt of token ids."""
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[TokenText | None, ...] | None = None
    num_cached_tokens: int = 0


class LLM:
    """A model in this process. Not thread-safe; `close` (or leaving the `with`) gives its memory back.

    `model` is a folder, a GGUF file, a hub name, or None for the starter model; `options` are the fields of
    `EngineConfig` (dtype, max_model_len, kv_cache_memory_bytes, ...). Raises UsageError, ModelError or CapacityError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        download_dir: str | None = None,
        **options: Any,
    ) -> None:
        name = "starter" if model is None else str(model)
        folder = STARTER if model is None else resolve_model(name, revision=revision, download_dir=download_dir)
        model_name = options.pop("model_name", Path(name).name)
        model_config = read_config(folder, model_name)
        defaults = read_defaults(folder, model_name)
        self.default_sampling_params = _default_params(defaults)
        """What the model's makers recommend (generation_config.json); for prompts that come without their own."""
        self.tokenizer = Tokenizer.from_folder(
            folder,
            model_name=model_name,
            model_vocab_size=model_config.vocab_size,
            eos_token_ids=defaults.eos_token_ids or model_config.eos_token_ids,
        )
        options.setdefault("tokenizer_vocab_size", self.tokenizer.vocab_size)
        self._config = EngineConfig(model=str(folder), model_name=model_name, **options)
        core, self.facts = build_engine(self._config)
        self._core: EngineCore | None = core

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of weights and KV cache. Idempotent; `generate` raises RuntimeError afterwards."""
        self._core = None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt (text, or token ids); all of them share the engine's steps.

        One `SamplingParams` serves all prompts, a list gives each its own, None takes `default_sampling_params`.
        Raises ValueError naming field, value and range; nothing has run then. A prompt that fails later has the reason
        in its outputs and stops no other.
        """
        listed = _listed(prompts)
        encoded = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in listed]
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        return self._run(texts, encoded, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, through the model's chat template.

        Raises ChatTemplateError (a ValueError) where the template refuses the messages; else as `generate`.
        """
        conversations = _conversations(messages)
        options: dict[str, Any] = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "template_kwargs": template_kwargs,
        }
        texts = [self.tokenizer.render_chat(conversation, **options) for conversation in conversations]
        encoded = [self.tokenizer.encode_chat(conversation, **options) for conversation in conversations]
        return self._run(texts, encoded, sampling_params, use_tqdm)

    def _run(
        self,
        texts: Sequence[str | None],
        prompts: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if self._core is None:
            raise RuntimeError("this LLM is closed")
        all_params = self._all_params(sampling_params, prompts)
        for index, (prompt, params) in enumerate(zip(prompts, all_params, strict=True)):
            self._check(index, prompt, params)
        eos = sorted(self.tokenizer.eos_token_ids)
        requests = {
            uuid.uuid4().hex: _Request(self.tokenizer, text, prompt, prepare(params, eos, secrets.randbits(63)))
            for text, prompt, params in zip(texts, prompts, all_params, strict=True)
        }
        with tqdm(total=len(requests), disable=not use_tqdm, unit="prompt") as bar:
            self._generate(self._core, requests, bar)
        return [request.output() for request in requests.values()]

    def _generate(self, core: EngineCore, requests: Mapping[str, _Request], bar: tqdm[Any]) -> None:
        for request_id, request in requests.items():
            core.add(Add(request_id, pack_ids(request.prompt_token_ids), request.params), time.monotonic())
        try:
            while core.has_work():
                outputs = core.step(time.monotonic)
                for row in outputs.rows if outputs is not None else ():
                    request = requests[row.request_id]
                    if request.push(row):
                        core.cancel(Cancel(row.request_id, row.choice, "stop_string"), time.monotonic())
                    bar.update(request.take_finished())
        finally:
            for request_id in core.request_ids():
                core.cancel(Cancel(request_id, None, "client_gone"), time.monotonic())
            while core.has_work():
                core.step(time.monotonic)

    def _all_params(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None, prompts: Sequence[list[int]]
    ) -> list[SamplingParams]:
        if sampling_params is None:
            defaults, limit = self.default_sampling_params, self.facts.max_model_len
            room = [max(1, limit - len(prompt)) for prompt in prompts]
            return [msgspec.structs.replace(defaults, max_tokens=min(defaults.max_tokens, count)) for count in room]
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * len(prompts)
        if len(sampling_params) != len(prompts):
            raise ValueError(f"sampling_params: {len(sampling_params)} of them for {len(prompts)} prompts")
        return list(sampling_params)

    def _check(self, index: int, prompt: list[int], params: SamplingParams) -> None:
        vocab_size, limit = self.facts.vocab_size, self.facts.max_model_len
        check(params, vocab_size=vocab_size, max_logprobs=self._config.max_logprobs)
        if not prompt:
            raise ValueError(f"prompts[{index}]: is empty; at least one token is needed")
        for token_id in prompt:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                raise ValueError(
                    f"prompts[{index}]: token id {token_id!r} is not an integer within 0..{vocab_size - 1}"
                )
        if len(prompt) + params.max_tokens > limit:
            raise ValueError(
                f"prompts[{index}]: {len(prompt)} tokens and max_tokens {params.max_tokens} are more than the context "
                f"of {limit} tokens"
            )


class _Request:
    """One prompt on its way: a detokenizer for each choice, and what they have given."""

    def __init__(self, tokenizer: Tokenizer, text: str | None, prompt: list[int], params: SamplingParams) -> None:
        self.text, self.prompt_token_ids, self.params = text, prompt, params
        self._detokenizers = [Detokenizer(tokenizer, params, prompt) for _ in range(params.n)]
        self._deltas: list[list[TextDelta]] = [[] for _ in range(params.n)]
        self._counted = False

    def push(self, row: OutputRow) -> bool:
        """Take a row; whether a stop string ended a choice that the engine still computes."""
        detokenizer = self._detokenizers[row.choice]
        delta = detokenizer.push(row)
        if delta is not None:
            self._deltas[row.choice].append(delta)
        return detokenizer.finished and row.finish_reason is None and delta is not None

    def take_finished(self) -> int:
        """1 when the last choice has ended since the last call, else 0."""
        finished = not self._counted and all(detokenizer.finished for detokenizer in self._detokenizers)
        self._counted |= finished
        return int(finished)

    def output(self) -> RequestOutput:
        """The fold of the deltas."""
        everything = [delta for deltas in self._deltas for delta in deltas]
        prompt_logprobs = next((delta.prompt_logprobs for delta in everything if delta.prompt_logprobs), None)
        return RequestOutput(
            prompt=self.text,
            prompt_token_ids=tuple(self.prompt_token_ids),
            outputs=tuple(self._choice(index, deltas) for index, deltas in enumerate(self._deltas)),
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=max((delta.num_cached_tokens for delta in everything), default=0),
        )

    def _choice(self, index: int, deltas: Sequence[TextDelta]) -> CompletionOutput:
        last = deltas[-1]
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = tuple(entry for delta in deltas for entry in delta.logprobs or ())
        return CompletionOutput(
            index=index,
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            logprobs=logprobs,
            failure=last.failure,
        )


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one or several were given."""
    if isinstance(prompts, str):
        return [prompts]
    single: list[int] = [item for item in prompts if isinstance(item, int)]
    several: list[Prompt] = [item for item in prompts if not isinstance(item, int)]
    if single and several:
        raise ValueError("prompts: token ids and whole prompts are mixed in one list")
    return [single] if single else several


def _conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    single: list[Message] = [item for item in messages if isinstance(item, Mapping)]
    several: list[Sequence[Message]] = [item for item in messages if not isinstance(item, Mapping)]
    if single and several:
        raise ValueError("messages: single messages and whole conversations are mixed in one list")
    return [single] if single else several


def _default_params(defaults: GenerationDefaults) -> SamplingParams:
    """The fields that generation_config.json names, over our own defaults."""
    recommended = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        "max_tokens": defaults.max_new_tokens,
    }
    given: dict[str, Any] = {name: value for name, value in recommended.items() if value is not None}
    return SamplingParams(**given)
