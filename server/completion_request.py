"""The body of POST /v1/completions, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from quire.server.errors import ApiError, quoted
from quire.server.limits import Limits
from quire.server.reader import Reader
from quire.server.request_options import RequestOptions, read_options
from quire.server.sampling import SamplingFields, SamplingRules, read_sampling

MAX_INT = 2**31 - 1
Prompt = str | list[int]


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of /v1/completions."""

    options: RequestOptions
    sampling: SamplingFields
    prompts: list[Prompt]
    """Each is text or token ids within the vocabulary; never empty."""
    echo: bool = False
    no_output: bool = False
    """max_tokens 0: only the prompt comes back."""
    show_prompt_logprobs: bool = False
    """Asked for by name; an echo with logprobs needs them too, in its own shape."""


def read_completion(
    body: dict[str, Any], models: Collection[str], rules: SamplingRules, limits: Limits
) -> CompletionRequest:
    """Check a body whose field names have been checked. Raises ApiError."""
    reader = Reader(body)
    options = read_options(reader, models)
    echo = reader.boolean("echo")
    max_tokens = reader.get("max_tokens")
    no_output = echo and max_tokens == 0 and not isinstance(max_tokens, bool | float)
    sampling = read_sampling(reader, rules, logprobs=reader.get("logprobs"), max_tokens=1 if no_output else max_tokens)
    show_prompt_logprobs = sampling.params.prompt_logprobs is not None
    if echo and sampling.params.logprobs is not None and sampling.params.prompt_logprobs is None:
        params = msgspec.structs.replace(sampling.params, prompt_logprobs=sampling.params.logprobs)
        sampling = msgspec.structs.replace(sampling, params=params)
    prompts = read_prompts(reader, "prompt", rules.vocab_size, limits.prompts)
    if len(prompts) * sampling.params.n > limits.sequences:
        text = f"{len(prompts)} prompts x n = {sampling.params.n} exceeds {limits.sequences} sequences a call."
        raise ApiError("too_many_sequences", text, "prompt")
    return CompletionRequest(
        options=options,
        sampling=sampling,
        prompts=prompts,
        echo=echo,
        no_output=no_output,
        show_prompt_logprobs=show_prompt_logprobs,
    )


def read_prompts(reader: Reader, field: str, vocab_size: int, limit: int) -> list[Prompt]:
    """A prompt is text, token ids, or a list of either. Raises ApiError naming the element at fault."""
    value = reader.required(field)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise reader.wrong_type(field, value, "text, a list of token ids, or a list of either")
    if value and not isinstance(value[0], str | list):
        value = [value]
    if not value:
        raise ApiError("empty_prompt", f"{field} is empty.", field)
    if len(value) > limit:
        raise ApiError("too_many_sequences", f"{len(value)} prompts exceed the limit of {limit} a call.", field)
    for prompt in value:
        if isinstance(prompt, list):
            check_token_ids(prompt, field, vocab_size)
        elif not isinstance(prompt, str):
            raise reader.wrong_type(field, prompt, "text or a list of token ids, like the prompts before it")
        if not prompt:
            raise ApiError("empty_prompt", f"{field} holds an empty prompt.", field)
    return value


def check_token_ids(ids: list[Any], field: str, vocab_size: int) -> None:
    """Raise ApiError unless every element is an integer within the vocabulary."""
    for token_id in ids:
        if type(token_id) is not int:
            raise ApiError("invalid_type", f"{field}: {quoted(token_id)} is not an integer token id.", field)
        if not 0 <= token_id < vocab_size:
            text = f"{field}: token id {quoted(token_id)} is not within 0..{vocab_size - 1}."
            raise ApiError("token_out_of_range", text, field)
