"""Requests that have a deadline, by the moment at which somebody must look at them again."""

from __future__ import annotations

from heapq import heappop, heappush

from quire.engine.prefill_shares import PrefillShares
from quire.engine.prefix_cache import PrefixCache
from quire.engine.roster import Roster
from quire.engine.sequence import Group, Status


class Deadlines:
    """Who is late, and who waits and could not begin to answer in time, so that no prompt is computed for nothing."""

    def __init__(self, roster: Roster, cache: PrefixCache, block_size: int, shares: PrefillShares) -> None:
        self._roster, self._cache, self._block_size, self._shares = roster, cache, block_size, shares
        self._heap: list[tuple[float, str]] = []
        """Requests that have ended are found out when they are due."""

    def watch(self, group: Group) -> None:
        """A request has been added."""
        if group.deadline is not None:
            num_prompt_tokens = group.choices[0].num_prompt_tokens
            heappush(self._heap, (group.deadline - self._shares.prompt_seconds(num_prompt_tokens), group.request_id))

    def late(self, now: float) -> list[str]:
        """Requests to be given up; they are forgotten."""
        ids = []
        while self._heap and self._heap[0][0] <= now:
            request_id = heappop(self._heap)[1]
            group = self._roster.groups.get(request_id)
            if group is None or group.deadline is None:
                continue
            last_chance = self._last_chance(group, group.deadline)
            if last_chance <= now:
                ids.append(request_id)
            else:
                heappush(self._heap, (last_chance, request_id))
        return ids

    def _last_chance(self, group: Group, deadline: float) -> float:
        """The deadline; while nothing is computed, so much earlier as the uncached prompt takes."""
        leader = group.leader
        if leader is None or leader.status is Status.RUNNING:
            return deadline
        num_cached_tokens = len(self._cache.find(self._cache.readable_keys(leader))[0]) * self._block_size
        return deadline - self._shares.prompt_seconds(leader.num_target_tokens - num_cached_tokens)
