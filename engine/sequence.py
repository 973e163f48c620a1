"""A sequence: one token stream being generated; and the group of the n choices of one request.

Progress is two counters that chase the token count; there is no prefill phase and no decode phase:

    0 <= num_computed_tokens <= num_scheduled_tokens <= num_target_tokens

`schedule()` advances the second, `apply()` the first. The target counts the known tokens and a placeholder for each
token that a step in flight will sample; it stops one short of the maximum length, because nobody reads the keys and
values of the last token.
"""

from __future__ import annotations

from enum import Enum

from quire.engine.messages import Add, TokenLogprobs, unpack_ids
from quire.engine.prefix_index import BlockKey, Scope
from quire.engine.sampling_params import SamplingParams


class Status(Enum):
    """Where a sequence is; FINISHED is reached exactly once."""

    WAITING = "waiting"
    """In the queue, or a choice whose group computes their prompt."""
    RUNNING = "running"
    PREEMPTED = "preempted"
    """Back in the queue, or on its way there while a step in flight still writes its blocks."""
    FINISHED = "finished"


class Group:
    """The choices of one request; they share a prompt, an arrival, and an end by failure."""

    __slots__ = (
        "arrived_at",
        "choices",
        "deadline",
        "first_scheduled_at",
        "forks",
        "key_id",
        "leader",
        "missing_since",
        "num_alone_tokens",
        "num_cached_tokens",
        "request_id",
        "scope",
        "weight",
    )

    def __init__(self, add: Add, arrived_at: float) -> None:
        self.request_id = add.request_id
        self.key_id = add.key_id
        self.weight = add.weight
        self.deadline = add.deadline
        self.scope = Scope(salt=add.salt)
        self.num_alone_tokens = add.alone
        """See `quire.engine.apart`."""
        self.arrived_at = arrived_at
        self.first_scheduled_at: float | None = None
        self.missing_since: float | None = None
        """Since when the HTTP side does not name this request any more."""
        self.num_cached_tokens = 0
        """Prompt tokens found in the prefix cache at first admission."""
        self.choices: dict[int, Sequence] = {}
        """The unfinished ones."""
        self.leader: Sequence | None = None
        """The choice that computes the prompt."""
        self.forks: list[Sequence] = []
        """Choices that have not begun: they fork from the leader when it has computed the prompt."""


class Sequence:
    """One choice of one request. Written by the `Scheduler` alone; compared by identity."""

    __slots__ = (
        "block_tables",
        "choice",
        "group",
        "keys",
        "max_computed_tokens",
        "max_length",
        "num_charged_tokens",
        "num_computed_tokens",
        "num_passed",
        "num_preemptions",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_scheduled_tokens",
        "num_sent_blocks",
        "num_steps_in_flight",
        "num_target_tokens",
        "order",
        "params",
        "prompt_logprobs",
        "refused_since",
        "row",
        "shadowing_since",
        "status",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(self, group: Group, add: Add, choice: int, order: tuple[int, ...], max_model_len: int) -> None:
        params = add.params
        self.group = group
        self.choice = choice
        self.params: SamplingParams = params
        self.order = order
        """Who goes first: smaller runs earlier and is preempted later."""
        self.token_ids = unpack_ids(add.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_length = min(self.num_prompt_tokens + params.max_tokens, max_model_len)
        self.max_computed_tokens = max(self.num_prompt_tokens, self.max_length - 1)
        """No token from here on is ever computed, so no slot is needed for it."""
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.status = Status.WAITING
        self.num_preemptions = 0
        self.num_charged_tokens = 0
        """Tokens that its key has been charged for, or got for nothing; they outlive preemption."""
        self.keys: list[BlockKey] = []
        """Keys of the full blocks, as far as they have been needed; they outlive preemption."""
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        """Being collected (None: not asked for, or delivered)."""
        # Waiting (read and written by the queue, but for the last).
        self.num_passed = 0
        self.refused_since: float | None = None
        self.shadowing_since: float | None = None
        """Since when it waits for a running sequence to compute its next block."""
        self.rewind()

    def rewind(self) -> None:
        """Back to nothing computed: no row, no blocks; the known tokens stay."""
        self.row = -1
        self.block_tables: list[list[int]] = []
        """One a cache group, all of one length; none while it holds no blocks. Where a window has slid past a block,
        its group's entry is the null block."""
        self.num_sent_blocks = 0
        """Entries of each block table that the runner has been told of."""
        self.expect_known_tokens()
        self.num_scheduled_tokens = 0
        self.num_computed_tokens = 0
        self.num_steps_in_flight = 0
        self.num_published_blocks = 0
        if self.choice == 0 and self.params.prompt_logprobs is not None and self.num_output_tokens == 0:
            self.prompt_logprobs = [None]

    def expect_known_tokens(self) -> None:
        """The target is what is known: no placeholders."""
        self.num_target_tokens = min(len(self.token_ids), self.max_computed_tokens)

    @property
    def num_missing_tokens(self) -> int:
        """Tokens to schedule before the next one can be sampled."""
        return self.num_target_tokens - self.num_scheduled_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled and applied."""
        return len(self.token_ids) - self.num_prompt_tokens

    def __repr__(self) -> str:
        return (
            f"Sequence({self.group.request_id}/{self.choice} {self.status.value} row={self.row} "
            f"{self.num_computed_tokens}<={self.num_scheduled_tokens}<={self.num_target_tokens} "
            f"blocks={self.block_tables})"
        )
