"""I13: of two keys that wait all the time, none gets more service than the other by more than a bound.

Service is counted here from the steps themselves, not from the queue's own counters: 1 for a prompt token computed for
the first time, 2 for a token of an answer, divided by the key's weight.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

from quire.engine.fair_queue import OUTPUT_WEIGHT, PROMPT_WEIGHT
from quire.engine.scheduler import Scheduler
from quire.engine.step import Step
from quire.simulator.clients import Client
from quire.simulator.fake_runner import Row
from quire.simulator.shadow import Violation


class Fairness:
    """Watches one engine; nothing to do unless its policy is fair, and the scheduler decides freely (`active`)."""

    def __init__(self, scheduler: Scheduler, active: bool) -> None:
        config = scheduler.config
        self._roster, self._active = scheduler.roster, active and config.policy == "fair"
        # Tokens that run at once: not bounded by the pool, since sequences share blocks.
        num_running_tokens = config.max_num_seqs * config.max_model_len
        self._bound = 2 * max(PROMPT_WEIGHT * config.max_model_len, OUTPUT_WEIGHT * num_running_tokens)
        self._charged: dict[tuple[str, int], int] = {}
        self._service: defaultdict[str, float] = defaultdict(float)
        self._spreads: dict[tuple[str, str], tuple[float, float]] = {}
        """Of two keys that both wait: the least and the greatest difference of their service since they do."""

    def stepped(self, step: Step, rows: dict[int, Row], clients: dict[str, Client]) -> None:
        """Charge what the step computes; then compare those who waited before it and still wait."""
        if not self._active:
            return
        begins = {new.row for new in step.new_rows}
        for work in step.work:
            end = work.start + work.num_tokens
            for number in dict.fromkeys((work.row, *work.samples)):
                row = rows.get(number)
                if row is not None:
                    got = row.num_prompt_tokens if number != work.row else work.start if number in begins else 0
                    self._charge(row, end + (number in work.samples), got, clients)
        self._compare()

    def _charge(self, row: Row, num_tokens: int, got: int, clients: dict[str, Client]) -> None:
        who, arrival = (row.request_id, row.choice), clients[row.request_id].arrival
        before = max(self._charged.get(who, 0), got)
        new = num_tokens - before
        self._charged[who] = max(before, num_tokens)
        if new > 0:
            num_output = max(0, min(new, num_tokens - row.num_prompt_tokens))
            cost = PROMPT_WEIGHT * (new - num_output) + OUTPUT_WEIGHT * num_output
            self._service[arrival.key_id] += cost / arrival.weight

    def _compare(self) -> None:
        waiting = sorted({sequence.group.key_id for sequence in self._roster.queue})
        spreads: dict[tuple[str, str], tuple[float, float]] = {}
        for pair in combinations(waiting, 2):
            difference = self._service[pair[0]] - self._service[pair[1]]
            low, high = self._spreads.get(pair, (difference, difference))
            spreads[pair] = low, high = min(low, difference), max(high, difference)
            if high - low > self._bound:
                raise Violation("I13", f"{pair} have both waited, and got {high - low:g} apart (bound {self._bound})")
        self._spreads = spreads
