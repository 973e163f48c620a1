"""The table of ranges: what is refused, with which field and code, and that defaults and borders pass."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quire.engine.sampling_params import InvalidParameter, SamplingParams, check

VOCAB = 1000

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.01}, "temperature", "invalid_value"),
    ({"temperature": float("nan")}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 2**40}, "top_k", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"presence_penalty": 2.01}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.01}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": -1}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 1e308}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"n": 10**18}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
    ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    ({"min_tokens": 17, "max_tokens": 16}, "min_tokens", "conflicting_parameters"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"logit_bias": []}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"AI": -100}}, "logit_bias.'AI'", "invalid_type"),
    ({"logit_bias": {VOCAB: 5}}, "logit_bias.1000", "token_out_of_range"),
    ({"logit_bias": {-1: 5}}, "logit_bias.-1", "token_out_of_range"),
    ({"logit_bias": {1: 101}}, "logit_bias.1", "invalid_value"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias", "too_many_items"),
    ({"stop_token_ids": (VOCAB,)}, "stop_token_ids[0]", "token_out_of_range"),
    ({"stop_token_ids": (1, -1)}, "stop_token_ids[1]", "token_out_of_range"),
    ({"stop_token_ids": ("1",)}, "stop_token_ids[0]", "invalid_type"),
    ({"stop_token_ids": tuple(range(257))}, "stop_token_ids", "too_many_items"),
    ({"allowed_token_ids": ()}, "allowed_token_ids", "invalid_value"),
    ({"allowed_token_ids": (VOCAB,)}, "allowed_token_ids[0]", "token_out_of_range"),
    ({"bad_words": ((),)}, "bad_words[0]", "invalid_value"),
    ({"bad_words": ((1,), (2, VOCAB))}, "bad_words[1]", "token_out_of_range"),
    ({"bad_words": (1,)}, "bad_words[0]", "invalid_type"),
    ({"stop": ("",)}, "stop[0]", "invalid_value"),
    ({"stop": ("a", "b" * 257)}, "stop[1]", "invalid_value"),
    ({"stop": ("\ufffd",)}, "stop[0]", "invalid_value"),
    ({"stop": ("\ud800",)}, "stop[0]", "invalid_value"),
    ({"stop": (1,)}, "stop[0]", "invalid_type"),
    ({"stop": "end"}, "stop", "invalid_type"),
    ({"stop": ("x",) * 17}, "stop", "too_many_items"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"prompt_logprobs": 10**6}, "prompt_logprobs", "invalid_value"),
    ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "field", "code"), REFUSED)
def test_refused(fields: dict[str, Any], field: str, code: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check(SamplingParams(**fields), vocab_size=VOCAB)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert str(caught.value).startswith(field + ": ")
    assert len(str(caught.value)) < 400


def test_message_names_value_and_range() -> None:
    with pytest.raises(ValueError, match=r"temperature: 2\.01 is not a number within 0\.\.2"):
        check(SamplingParams(temperature=2.01), vocab_size=VOCAB)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1e-300, "top_p": 0, "top_k": 1, "min_p": 1},
        {"temperature": 2, "n": 16, "top_k": -1, "seed": -(2**63), "repetition_penalty": 10},
        {"logit_bias": {0: -100, VOCAB - 1: 100}, "stop_token_ids": (0, VOCAB - 1), "bad_words": ((1, 2), (3,))},
        {"max_tokens": 0, "prompt_logprobs": 0},
        {"stop": ("x" * 256,) * 16, "logprobs": 20, "prompt_logprobs": 0, "allowed_token_ids": [0]},
    ],
)
def test_accepted_and_survives_the_line(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    check(params, vocab_size=VOCAB)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    check(decoded, vocab_size=VOCAB)
    assert decoded.seed == params.seed
