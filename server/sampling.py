"""From a request's fields to `SamplingParams`, with the model's defaults, and checked by the one table of ranges."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.engine.sampling_params import MAX_ITEMS, InvalidParameter, SamplingParams, check
from quire.server.errors import ApiError
from quire.server.reader import Reader, from_invalid

MAX_BAD_WORD_CHARACTERS = 256
_NUMBERS = (
    "n",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "prompt_logprobs",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "ignore_eos",
)


@dataclass(frozen=True)
class SamplingRules:
    """What the model and the operator fix for every request."""

    vocab_size: int
    max_logprobs: int
    eos_token_ids: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    """Sampling parameters of generation_config.json, for requests that do not name them."""


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Checked sampling fields of one request; what needs the tokenizer or the prompt's length is not yet in place."""

    params: SamplingParams
    max_tokens: int | None
    """As the request named it; None lets the default, clamped to the context, stand."""
    bad_words: tuple[str, ...] = ()

    def complete(self, max_tokens: int, bad_words: tuple[tuple[int, ...], ...]) -> SamplingParams:
        """The parameters of one prompt."""
        return msgspec.structs.replace(self.params, max_tokens=max_tokens, bad_words=bad_words)


def read_sampling(
    reader: Reader,
    rules: SamplingRules,
    *,
    logprobs: Any,
    max_tokens: Any,
    renamed: Mapping[str, str] | None = None,
) -> SamplingFields:
    """Read and check every sampling field. `logprobs` and `max_tokens` were read by the route, whose spellings differ;
    `renamed` gives those spellings, for messages."""
    given = {name: value for name in _NUMBERS if (value := reader.get(name)) is not None}
    stop = reader.get("stop")
    stop_token_ids = tuple(reader.array("stop_token_ids") or ())
    allowed = reader.array("allowed_token_ids")
    params = SamplingParams(
        **{**rules.defaults, **given},
        max_tokens=2**31 - 1 if max_tokens is None else max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(reader.array("stop") or ()),
        stop_token_ids=stop_token_ids,
        allowed_token_ids=None if allowed is None else tuple(allowed),
        logit_bias=_read_logit_bias(reader),
        logprobs=logprobs,
    )
    try:
        check(params, vocab_size=rules.vocab_size, max_logprobs=rules.max_logprobs)
    except InvalidParameter as error:
        raise from_invalid(error, renamed or {}) from None
    ending = () if params.ignore_eos else rules.eos_token_ids
    params = msgspec.structs.replace(
        params,
        stop_token_ids=tuple(dict.fromkeys((*stop_token_ids, *ending))),
        seed=secrets.randbits(63) if params.seed is None else params.seed,
    )
    return SamplingFields(params=params, max_tokens=max_tokens, bad_words=_read_bad_words(reader))


def _read_logit_bias(reader: Reader) -> dict[int, Any]:
    given = reader.object("logit_bias") or {}
    if len(given) > MAX_ITEMS["logit_bias"]:
        text = f"logit_bias has {len(given)} items, and the limit is {MAX_ITEMS['logit_bias']}."
        raise ApiError("too_many_items", text, "logit_bias")
    biases: dict[int, Any] = {}
    for key, value in given.items():
        digits = key.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            name = f"logit_bias.{ascii(key[:64])[1:-1]}"
            text = f"{name}: a key must be an integer token id within the vocabulary, with a bias within -100..100."
            raise ApiError("invalid_value", text, name)
        biases[int(key)] = value
    return biases


def _read_bad_words(reader: Reader) -> tuple[str, ...]:
    words = reader.array("bad_words") or []
    if len(words) > MAX_ITEMS["bad_words"]:
        text = f"bad_words has {len(words)} items, and the limit is {MAX_ITEMS['bad_words']}."
        raise ApiError("too_many_items", text, "bad_words")
    for index, word in enumerate(words):
        if not isinstance(word, str) or not 1 <= len(word) <= MAX_BAD_WORD_CHARACTERS:
            text = f"bad_words[{index}] must be a string of 1..{MAX_BAD_WORD_CHARACTERS} characters."
            raise ApiError("invalid_value", text, f"bad_words[{index}]")
    return tuple(words)
