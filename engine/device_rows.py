"""What the host knows of each row on a device: how many tokens and blocks, and what changes its logits.

Token ids are not among it: those that are sampled stay on the device. What depends on them (penalties, the beginnings
of bad words) is computed there, from the row's own tokens, so that no row waits for the host. Everything that becomes
an index on the device is checked here: an index out of bounds would end the whole process there, and not one request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quire.engine.messages import Failure
from quire.engine.packed_words import Int32Array
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork


class Edits:
    """What `params` change in a row's logits, of `vocab_size` columns. Raises ValueError for ids beyond them."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        banned = [word[0] for word in params.bad_words if len(word) == 1]
        self.words = [word for word in params.bad_words if len(word) > 1]
        """A word's last token is impossible behind the others."""
        self.added_ids = _ids("logit_bias and bad_words", [*params.logit_bias, *banned], vocab_size)
        self.added = np.array([*params.logit_bias.values(), *[-np.inf] * len(banned)], dtype=np.float32)
        _ids("bad_words", [token_id for word in self.words for token_id in word], vocab_size)
        self.stop_ids = np.array([i for i in params.stop_token_ids if i < vocab_size], dtype=np.int32)
        self.allowed: Int32Array | None = None
        if params.allowed_token_ids is not None:
            self.allowed = _ids("allowed_token_ids", list(params.allowed_token_ids), vocab_size)
        self.penalises = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        self.always = self.penalises or bool(self.added_ids.size or self.words) or self.allowed is not None


def _ids(what: str, token_ids: list[int], vocab_size: int) -> Int32Array:
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ValueError(f"{what}: ids {min(token_ids)}..{max(token_ids)} are not all within 0..{vocab_size - 1}")
    return np.array(token_ids, dtype=np.int32)


@dataclass
class DeviceRow:
    """One row. `failure` is why it can neither compute nor sample; it has no edits then."""

    request_id: str
    params: SamplingParams
    num_prompt_tokens: int
    num_tokens: int = 0
    """Prompt, sampled, and about to be sampled by the steps that were launched."""
    num_blocks: int = 0
    """Entries of each of its block tables."""
    edits: Edits | None = None
    failure: Failure | None = None

    @property
    def masks_stop(self) -> bool:
        """Whether its next token may not end it."""
        return self.num_tokens - self.num_prompt_tokens < self.params.min_tokens and bool(self.params.stop_token_ids)

    @property
    def adjusts(self) -> bool:
        """Whether the logits of its next token are changed before it is chosen."""
        return self.masks_stop or (self.edits is not None and self.edits.always)

    def check(self, work: RowWork, block_size: int) -> None:
        """Raise ValueError when `work` names tokens or slots that the row does not have."""
        end = work.start + work.num_tokens
        if work.num_tokens < 1 or work.start < 0 or end > self.num_tokens:
            raise ValueError(f"tokens {work.start}..{end - 1} of {self.num_tokens} known ones")
        if end > self.num_blocks * block_size:
            raise ValueError(f"{end} tokens do not fit into {self.num_blocks} blocks of {block_size}")


def prepare(row: DeviceRow, new_row: NewRow, vocab_size: int, max_tokens: int) -> Int32Array:
    """Fill in `row`; the token ids it begins with. Raises ValueError for what the edge should have refused."""
    token_ids = np.frombuffer(new_row.token_ids, dtype=np.int32)
    if token_ids.size > max_tokens:
        raise ValueError(f"{token_ids.size} tokens, and the longest sequence is {max_tokens}")
    if token_ids.size and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab_size:
        raise ValueError(f"token ids {token_ids.min()}..{token_ids.max()} are not all within 0..{vocab_size - 1}")
    if new_row.params.temperature > 0 and new_row.params.seed is None:
        raise ValueError("a row that samples at a temperature needs a seed")
    row.num_tokens = token_ids.size
    row.edits = Edits(new_row.params, vocab_size)
    return token_ids
