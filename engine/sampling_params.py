"""What a caller may ask of the tokens of one request. Torch-free: both processes read it."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tokens of one request are chosen and when they end.

    The first group is read by the engine, the second by the text side (detokenizer and stop strings), which runs in
    the HTTP process, or in `LLM`. Values are checked at the edge (`quire.server.validation`, `LLM`), once; the engine
    trusts them.
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
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
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
