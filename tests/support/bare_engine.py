"""A core on a real model in this process, without any text: what the contract of answers is tested on."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import NULL_BLOCK, group_layers, has_window
from quire.engine.core import EngineCore
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.kv_cache import KVCache
from quire.engine.messages import Add, TokenLogprobs, pack_ids, unpack_ids
from quire.engine.models.decoder import Decoder
from quire.engine.plan import CachePlan
from quire.engine.prefix_index import PrefixIndex
from quire.engine.runner import ModelRunner
from quire.engine.sampling_params import SamplingParams
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.step import RowWork, Step
from quire.engine.step_input import StepInput

MAX_MODEL_LEN = 256
CPU = torch.device("cpu")

Prompts = dict[str, tuple[list[int], SamplingParams]]


@dataclass(frozen=True)
class Setup:
    """One engine."""

    block_size: int = 16
    num_tokens: int = 4096
    budget: int = 512
    chunk: int | None = None
    prefix_caching: bool = False
    shuffle: bool = True
    max_num_seqs: int = 24


@dataclass
class Result:
    """What one choice got."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None]
    num_cached_tokens: int
    finish_reason: str | None


Results = dict[tuple[str, int], Result]


class CountingRunner(ModelRunner):
    """Counts how often each request began: more than once means that it was preempted."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.starts: Counter[str] = Counter()

    def forward(self, step: Step) -> None:
        self.starts.update(new_row.request_id for new_row in step.new_rows)
        super().forward(step)


class Engine:
    """A core on a real model; every slot of the cache holds NaN before it is written."""

    def __init__(
        self,
        decoder: Decoder,
        setup: Setup,
        *,
        plant: bool = False,
        faults: Faults = NO_FAULTS,
        runner: Callable[..., Any] = CountingRunner,
        depth: int = 1,
        place: torch.device = CPU,
    ) -> None:
        groups = group_layers(decoder.cache_spec())
        num_blocks = len(groups) * setup.num_tokens // setup.block_size + has_window(groups)
        plan = CachePlan(num_blocks, setup.block_size, MAX_MODEL_LEN, bytes=0, groups=groups)
        self.setup, self.first_block = setup, NULL_BLOCK + 1 if plan.has_null_block else 0
        self.cache = KVCache(decoder.cache_spec(), plan, torch.float32, place)
        for tensor in itertools.chain.from_iterable(self.cache.layers):
            tensor[self.first_block :] = math.nan
        self.runner = runner(
            decoder,
            decoder.kernels,
            self.cache,
            max_num_seqs=setup.max_num_seqs,
            max_model_len=MAX_MODEL_LEN,
            block_size=setup.block_size,
            vocab_size=decoder.config.vocab_size,
        )
        order = list(range(self.first_block, num_blocks))
        if setup.shuffle:
            random.Random(7).shuffle(order)
        index = PrefixIndex(b"secret") if setup.prefix_caching else None
        config = SchedulerConfig(
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.budget,
            max_model_len=MAX_MODEL_LEN,
            long_prefill_token_threshold=setup.chunk,
        )
        pool = BlockPool(num_blocks, setup.block_size, prefix_index=index, order=order, null_block=plan.has_null_block)
        self.scheduler = Scheduler(config, pool, faults, groups)
        self.core = EngineCore(self.scheduler, self.runner, depth=depth, faults=faults)
        self.plant = plant
        self._clock = itertools.count()

    def run(self, prompts: Prompts) -> Results:
        """Add everything at once and step until all is done."""
        if self.plant:
            self._plant()
        results: Results = {}
        for name, (prompt, params) in prompts.items():
            self.core.add(Add(name, pack_ids(prompt), params), 0.0)
            results |= {(name, choice): Result([], [], [], 0, None) for choice in range(params.n)}
        while self.core.has_work():
            outputs = self.core.step(lambda: float(next(self._clock)))
            for row in outputs.rows if outputs else ():
                result = results[row.request_id, row.choice]
                result.tokens += unpack_ids(row.token_ids)
                result.logprobs += row.logprobs or ()
                result.prompt_logprobs += row.prompt_logprobs or ()
                result.num_cached_tokens = max(result.num_cached_tokens, row.num_cached_tokens)
                result.finish_reason = row.finish_reason or result.finish_reason
        assert self.core.check() == ()
        assert self.core.statistics().num_used_blocks == 0
        return results

    def preempted_subjects(self) -> int:
        """How many subjects began more than once."""
        return sum(count > 1 for name, count in self.runner.starts.items() if name.startswith("subject"))

    def _plant(self) -> None:
        """From the first step on that reads a subject's earlier tokens, one entry of its block table is wrong."""
        table, block_size = self.runner._table, self.setup.block_size
        step_input = table.step_input
        done = False

        def planted(works: Sequence[RowWork]) -> StepInput:
            nonlocal done
            for work in works:
                if not done and work.start > 0 and self.runner._rows[work.row].request_id.startswith("subject"):
                    entry = (work.start - 1) // block_size
                    right = int(table._block_ids[-1, work.row, entry])
                    wrong = (right + 1 - self.first_block) % (self.setup.num_tokens // block_size) + self.first_block
                    for tensor in itertools.chain.from_iterable(self.cache.layers):
                        tensor[wrong].normal_()
                    table._block_ids[-1, work.row, entry] = wrong
                    done = True
            return step_input(works)

        table.step_input = planted  # type: ignore[method-assign]
