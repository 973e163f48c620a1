"""What a caller may ask of the tokens of one request, and the ranges of it. Torch-free: both processes read it.

`check` is the only place that knows the ranges; the HTTP routes and `LLM` call it once, at the edge, then `prepare`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tokens of one request are chosen and when they end.

    The first group is read by the engine, the second by the text side (detokenizer and stop strings), which runs in
    the HTTP process, or in `LLM`. Values are checked at the edge (`check`), once; the engine trusts them.
    """

    # Read by the engine.
    n: int = 1
    """Choices per prompt; each is a sequence of its own that shares the prompt's blocks."""
    max_tokens: int = 16
    min_tokens: int = 0
    """`stop_token_ids` are masked until this many tokens are out; stop strings are ignored as long."""
    temperature: float = 1.0
    """0 is greedy: argmax of the penalised logits, first index wins a tie."""
    top_k: int = 0
    """Keeps tokens at least as likely as the k-th; 0 and -1 keep all."""
    top_p: float = 1.0
    """Keeps the most likely tokens until their mass, of what top_k left, reaches top_p; at least one."""
    min_p: float = 0.0
    """Keeps tokens at least min_p times as likely as the most likely one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides (positive) or multiplies (negative) the logits of every token seen in prompt or output (CTRL, 2019)."""
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """Noise is a function of (seed, choice, position, token id). None only before the edge: the HTTP side draws one."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends the sequence with reason `stop`. The model's EOS ids are already among them unless `ignore_eos`."""
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not be completed; a sequence of one id is simply banned."""
    logprobs: int | None = None
    """None: none. k: the sampled token's log probability and the k most likely ones beside it (of the raw logits'
    log-softmax, before penalties and temperature)."""
    prompt_logprobs: int | None = None

    # Read by the text side.
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False


def prepare(params: SamplingParams, eos_token_ids: Iterable[int], seed: int) -> SamplingParams:
    """`params` as the engine wants them: the model's EOS ids among the stop ids unless `ignore_eos`, and a seed.

    `seed` is one drawn for this request; it counts when the caller gave none.
    """
    stop_token_ids = params.stop_token_ids
    if not params.ignore_eos:
        stop_token_ids = tuple(dict.fromkeys((*stop_token_ids, *eos_token_ids)))
    seed = seed if params.seed is None else params.seed
    return msgspec.structs.replace(params, stop_token_ids=stop_token_ids, seed=seed)


class InvalidParameter(ValueError):
    """A sampling parameter outside its range; `str(error)` names the field, the value and what is allowed.

    `field` is the path of the fault (`stop[0]`, `logit_bias.17`), `code` the error code of the API.
    """

    def __init__(self, field: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.code = field, code


class Range(NamedTuple):
    """The values from `low` to `high`, both included."""

    low: float
    high: float
    integer: bool = False

    def __str__(self) -> str:
        kind = "an integer" if self.integer else "a number"
        return f"{kind} within {self.low:g}..{self.high:g}" if self.high < 1e6 else f"{kind} of at least {self.low:g}"


MAX_INT = 2**31 - 1

RANGES: dict[str, Range] = {
    "n": Range(1, 16, integer=True),
    "max_tokens": Range(1, MAX_INT, integer=True),
    "min_tokens": Range(0, MAX_INT, integer=True),
    "temperature": Range(0, 2),
    "top_k": Range(-1, MAX_INT, integer=True),
    "top_p": Range(0, 1),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0.01, 10),
    "logit_bias": Range(-100, 100),
    "seed": Range(-(2**63), 2**63 - 1, integer=True),
}
"""Of numbers; `logit_bias` is the range of its values. `logprobs` and `prompt_logprobs` are bounded by max_logprobs."""

SCORING_MAX_TOKENS = Range(0, MAX_INT, integer=True)
"""max_tokens of a request that asks for prompt_logprobs: 0 scores the prompt and generates nothing."""

MAX_ITEMS: dict[str, int] = {
    "logit_bias": 1024,
    "stop_token_ids": 256,
    "allowed_token_ids": 1024,
    "bad_words": 256,
    "stop": 16,
}
MAX_STOP_CHARACTERS = 256
MAX_BAD_WORD_TOKENS = 64


def check(params: SamplingParams, *, vocab_size: int, max_logprobs: int = 20) -> None:
    """Raise InvalidParameter for the first value of `params` out of its range or of the wrong type.

    Token ids must lie within 0..vocab_size - 1, where `vocab_size` counts the ids that may be sampled.
    """
    for field, allowed in RANGES.items():
        if field == "logit_bias" or (field == "seed" and params.seed is None):
            continue
        if field == "max_tokens" and params.prompt_logprobs is not None:
            allowed = SCORING_MAX_TOKENS
        check_number(field, getattr(params, field), allowed)
    for field in ("logprobs", "prompt_logprobs"):
        if (value := getattr(params, field)) is not None:
            check_number(field, value, Range(0, max_logprobs, integer=True))
    for field in ("include_stop_str_in_output", "skip_special_tokens", "ignore_eos"):
        if not isinstance(value := getattr(params, field), bool):
            raise InvalidParameter(field, f"{_shown(value)} is not true or false", "invalid_type")
    if params.min_tokens > params.max_tokens:
        message = f"{params.min_tokens} is more than max_tokens {params.max_tokens}"
        raise InvalidParameter("min_tokens", message, "conflicting_parameters")
    _check_token_lists(params, vocab_size)
    _check_stop(params.stop)


def check_number(field: str, value: Any, allowed: Range) -> None:
    """Raise InvalidParameter unless `value` is a number (no bool, no NaN) within `allowed`."""
    kinds = (int,) if allowed.integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InvalidParameter(field, f"{_shown(value)} is not {allowed}", "invalid_type")
    if not allowed.low <= value <= allowed.high:
        raise InvalidParameter(field, f"{_shown(value)} is not {allowed}")


def _check_token_lists(params: SamplingParams, vocab_size: int) -> None:
    if not isinstance(params.logit_bias, dict):
        _refuse_type("logit_bias", params.logit_bias, "an object of token id to bias")
    _check_count("logit_bias", params.logit_bias)
    for token_id, bias in params.logit_bias.items():
        _check_token_id(f"logit_bias.{_shown(token_id)}", token_id, vocab_size)
        check_number(f"logit_bias.{token_id}", bias, RANGES["logit_bias"])
    _check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.allowed_token_ids is not None:
        _check_token_ids("allowed_token_ids", params.allowed_token_ids, vocab_size)
        if not params.allowed_token_ids:
            raise InvalidParameter("allowed_token_ids", "is empty, which allows no token; leave it out to allow all")
    _check_count("bad_words", _listed("bad_words", params.bad_words))
    for index, word in enumerate(params.bad_words):
        field = f"bad_words[{index}]"
        if not 1 <= len(_listed(field, word)) <= MAX_BAD_WORD_TOKENS:
            raise InvalidParameter(field, f"has {len(word)} tokens, not 1..{MAX_BAD_WORD_TOKENS}")
        for token_id in word:
            _check_token_id(field, token_id, vocab_size)


def _check_token_ids(field: str, ids: Any, vocab_size: int) -> None:
    _check_count(field, _listed(field, ids))
    for index, token_id in enumerate(ids):
        _check_token_id(f"{field}[{index}]", token_id, vocab_size)


def _check_token_id(field: str, token_id: Any, vocab_size: int) -> None:
    if isinstance(token_id, bool) or not isinstance(token_id, int):
        _refuse_type(field, token_id, "an integer token id")
    if not 0 <= token_id < vocab_size:
        message = f"token id {_shown(token_id)} is not within 0..{vocab_size - 1}"
        raise InvalidParameter(field, message, "token_out_of_range")


def _check_stop(stop: Any) -> None:
    _check_count("stop", _listed("stop", stop))
    for index, text in enumerate(stop):
        field = f"stop[{index}]"
        if not isinstance(text, str):
            _refuse_type(field, text, "a string")
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidParameter(field, f"has {len(text)} characters, not 1..{MAX_STOP_CHARACTERS}")
        if text == "\ufffd" or any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidParameter(field, f"{_shown(text)} can never occur in text")


def _check_count(field: str, items: Any) -> None:
    if len(items) > MAX_ITEMS[field]:
        message = f"has {len(items)} items, and the limit is {MAX_ITEMS[field]}"
        raise InvalidParameter(field, message, "too_many_items")


def _listed(field: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _refuse_type(field, value, "a list")
    return value


def _refuse_type(field: str, value: Any, expected: str) -> NoReturn:
    raise InvalidParameter(field, f"{_shown(value)} is not {expected}", "invalid_type")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 200 else text[:200] + "..."
