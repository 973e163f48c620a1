"""The typed messages that cross the process line, and their encoding. Torch-free.

HTTP process -> engine: Configure (first frame), Add, Cancel, LiveIds, Query, Watch, Shutdown.
Engine -> HTTP process: Progress, Ready, StartFailed, StepOutputs, Answer, Failed, PoolPicture.

Every accepted request ends in exactly one terminal message for each choice: an `OutputRow` with a `finish_reason`, or a
`Failed`. Token ids travel as little-endian int32 bytes (`pack_ids`, `unpack_ids`). msgpack with a fixed schema; no
pickle, no tensors. The framing (length prefix, cap, build id handshake) is `quire.engine.transport`'s.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Literal

import msgspec

from quire.engine.config import EngineConfig
from quire.engine.pool_frame import PoolFrame
from quire.engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "aborted", "timeout", "error"]
CancelReason = Literal["client_gone", "stop_string", "deadline", "drain"]


def pack_ids(ids: Iterable[int]) -> bytes:
    """Encode token ids as little-endian int32 bytes; raises OverflowError beyond int32."""
    return array("i", ids).tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Decode what `pack_ids` encoded; raises ValueError when the length is no multiple of four."""
    ids = array("i")
    ids.frombytes(data)
    return ids.tolist()


class Failure(msgspec.Struct, frozen=True):
    """Why one request failed: `code` is the error code of the API, `status` the HTTP status, `message` for people."""

    code: str
    message: str
    status: int = 500


# --- to the engine ---------------------------------------------------------------------------------------------------


class Configure(msgspec.Struct, frozen=True, tag=True):
    """The first frame: the whole configuration, and the names of faults that a test plants ({} in production)."""

    config: EngineConfig
    build_id: str
    faults: dict[str, str] = {}


class Explain(msgspec.Struct, frozen=True, array_like=True):
    """What a request wants to be told about itself."""

    began: float | None = None
    """Monotonic seconds, of the clock that the engine reads too: its ledger begins here. None: no ledger."""
    cache_report: bool = False


class Add(msgspec.Struct, frozen=True, tag=True):
    """One prompt with its n choices. `request_id` is ours (32 hex digits), never the client's."""

    request_id: str
    prompt_token_ids: bytes
    params: SamplingParams
    priority: int = 0
    """Lower runs earlier under the priority policy."""
    salt: bytes = b""
    """Separates tenants in the prefix cache."""
    key_id: str = ""
    """Whose request it is, for fair sharing; never a secret."""
    weight: float = 1.0
    """Of its key under the fair policy: one of weight 2 gets twice as much as one of weight 1."""
    deadline: float | None = None
    """Monotonic seconds, of the clock that the engine reads too: past it the request ends with `timeout`."""
    explain: Explain | None = None
    alone: int = 0
    """Of a suspect (`quire.engine.quarantine`): it shares no step until each of its choices has so many tokens."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Ends one choice, or all of them (`choice` None). Idempotent; an unknown id is ignored."""

    request_id: str
    choice: int | None
    reason: CancelReason


class LiveIds(msgspec.Struct, frozen=True, tag=True):
    """Every request id the HTTP side still waits for; the engine cancels ids that are missing for 15 s."""

    request_ids: tuple[str, ...]


class Query(msgspec.Struct, frozen=True, tag=True):
    """A question outside the token stream, answered by an `Answer` with the same `query_id`.

    kind "statistics": current `Statistics` and the registered request ids; "check": the invariants too; "flight": a
    recording of the last steps.
    """

    query_id: int
    kind: Literal["statistics", "check", "flight"]


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Somebody looks at the block pool for so many seconds from now on; 0: nobody does any more.

    A watch that begins is answered by a `PoolPicture` with a full frame, and then by one with each change.
    """

    seconds: float


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish nothing, free everything, exit 0."""


ToEngine = Configure | Add | Cancel | LiveIds | Query | Watch | Shutdown


# --- from the engine -------------------------------------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Loading: `done` of `total` in units of `stage` ("weights": bytes, "warmup": steps)."""

    stage: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Facts found while loading; the HTTP side prints them and validates against them."""

    max_model_len: int
    vocab_size: int
    """Columns that may be sampled (the tokenizer's size, never the padded one)."""
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    weights_bytes: int
    kv_cache_bytes: int
    dtype: str
    """What the weights are kept in."""
    cache_dtype: str
    """What keys and values are kept in."""
    device: str
    kernels: str
    """The chosen kernels and why, one line."""
    seconds: dict[str, float]
    """Start-up by part: import, weights, kv_cache, warmup."""
    notes: tuple[str, ...] = ()
    """Sentences for the operator: what was reduced, and why."""
    num_cache_groups: int = 1
    """Block tables of a sequence: a block holds the keys and values of one group's layers."""


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """Loading failed; the process exits with `exit_code` after this frame."""

    message: str
    exit_code: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the chosen token's, its rank (1 = most likely), and the k most likely."""

    token_id: int
    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Delay(msgspec.Struct, frozen=True, array_like=True):
    """What another request's prompt cost this one; `request_id` None: it has another key."""

    request_id: str | None
    nanoseconds: int


class Timings(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One choice's time from `began` to `ended`, in nanoseconds; the entries of `quire.engine.ledger` add up to it."""

    began: float
    ended: float
    """Monotonic seconds."""
    queue: int
    prefill: int
    others_prefill: int
    decode: int
    preempted: int
    sampling: int
    delayed_by: tuple[Delay, ...] = ()
    """The costliest neighbours first."""


MissReason = Literal[
    "diverged", "evicted", "never_seen", "salt", "not_full_block", "last_token", "prompt_logprobs", "disabled"
]


class CacheReport(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How far the prefix cache served a prompt when it was first admitted, and why no further."""

    num_prompt_tokens: int
    num_cached_tokens: int
    block_size: int
    reason: MissReason
    position: int
    """Of the first token that is not like any cached prompt's, as far as is known."""
    neighbour_token_ids: tuple[int, ...] = ()
    """diverged: what the most similar cached prompt of the same salt has from `position` to the end of its block."""


class OutputRow(msgspec.Struct, array_like=True):
    """What one sequence gained in one step. A transport that lags may merge unsent rows of a sequence (`merge`)."""

    request_id: str
    choice: int
    token_ids: bytes
    """New tokens, in order; the stop token, when that ended it, is the last."""
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    """Set exactly when `finish_reason` is "error"."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry a new token, when asked for."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """Whole, on choice 0's first row only, when asked for; the first entry is None."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when the request was first admitted."""
    queue_seconds: float = 0.0
    """From Add to the first step that scheduled it; on the first row."""
    timings: Timings | None = None
    """When asked for: on the last row, and on every row where a stop string may make it the last."""
    cache_report: CacheReport | None = None
    """When asked for: once, on a row of any choice."""

    def merge(self, later: OutputRow) -> OutputRow:
        """This row and a later one of the same sequence as one row."""
        logprobs = None
        if self.logprobs is not None or later.logprobs is not None:
            logprobs = (self.logprobs or ()) + (later.logprobs or ())
        return OutputRow(
            request_id=self.request_id,
            choice=self.choice,
            token_ids=self.token_ids + later.token_ids,
            finish_reason=later.finish_reason,
            failure=later.failure,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if self.prompt_logprobs is not None else later.prompt_logprobs,
            num_cached_tokens=max(self.num_cached_tokens, later.num_cached_tokens),
            queue_seconds=max(self.queue_seconds, later.queue_seconds),
            timings=later.timings,
            cache_report=self.cache_report or later.cache_report,
        )


class Statistics(msgspec.Struct, frozen=True):
    """Gauges of this moment and counters since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0
    """Referenced by a running sequence; cached blocks without a reference are free."""
    num_cached_blocks: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    """Tokens looked up."""
    prefix_cache_hits: int = 0
    """Tokens found."""
    step_tokens: int = 0
    """Tokens scheduled by the last step."""


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """One message a step for all sequences."""

    rows: tuple[OutputRow, ...]
    statistics: Statistics


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Query`: statistics, and for "check" the violated invariants (empty when sound)."""

    query_id: int
    statistics: Statistics
    request_ids: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    recording: bytes = b""
    """For "flight": a `quire.engine.recorder.Recording` as msgpack, token ids included."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """These requests (None: all) ended without further rows."""

    request_ids: tuple[str, ...] | None
    failure: Failure


class PoolPicture(msgspec.Struct, frozen=True, tag=True):
    """What the block pool looks like, or what has changed in it; sent while there is a `Watch`."""

    frame: PoolFrame


FromEngine = Progress | Ready | StartFailed | StepOutputs | Answer | Failed | PoolPicture
