"""What one API key may use: requests and tokens a minute, requests at once. Pure: times come in as `now`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from quire.server.errors import ApiError, retry_after

MINUTE = 60.0


@dataclass(frozen=True)
class KeyLimits:
    """None: as much as the server has. `weight` is the key's share beside others under fair scheduling."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    """Requests under way."""
    weight: float = 1.0

    @property
    def any(self) -> bool:
        """Whether there is anything to refuse for."""
        return dataclasses.replace(self, weight=1.0) != KeyLimits()


class Bucket:
    """An allowance that refills evenly: `limit` a minute, never more than a minute's worth."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level, self._at = float(limit), now

    def level(self, now: float) -> float:
        """What is left; below 0 after a piece of work that was larger than a minute's worth."""
        return min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until so much is there; more than a minute's worth is there when the bucket is full."""
        return max(0.0, (min(amount, self.limit) - self.level(now)) * MINUTE / self.limit)

    def take(self, amount: float, now: float) -> None:
        """Use it; a negative amount gives back."""
        self._level, self._at = min(self.limit, self.level(now) - amount), now


class KeyMeter:
    """One key's limits and what it has used of them. Who is refused has used nothing."""

    def __init__(self, limits: KeyLimits, now: float) -> None:
        self.limits = limits
        self.num_requests = 0
        """Under way."""
        self.num_sequences = 0
        """Waiting and running."""
        self._requests = None if limits.requests_per_minute is None else Bucket(limits.requests_per_minute, now)
        self._tokens = None if limits.tokens_per_minute is None else Bucket(limits.tokens_per_minute, now)

    def enter(self, now: float) -> None:
        """A request comes. Raises rate_limit_exceeded or concurrency_limit_exceeded."""
        parallel = self.limits.parallel
        if parallel is not None and self.num_requests >= parallel:
            text = f"This key may have {parallel} requests under way at once, and has {self.num_requests}."
            raise self._refusal("concurrency_limit_exceeded", text, 1.0, now)
        if self._requests is not None:
            wait = self._requests.seconds_until(1, now)
            if wait > 0:
                text = f"This key may send {self._requests.limit} requests a minute, and has sent them."
                raise self._refusal("rate_limit_exceeded", text, wait, now)
            self._requests.take(1, now)
        self.num_requests += 1

    def leave(self) -> None:
        """A request has ended."""
        self.num_requests -= 1

    def reserve(self, num_tokens: int, now: float) -> None:
        """Tokens that a request may come to use. Raises rate_limit_exceeded."""
        if self._tokens is None:
            return
        wait = self._tokens.seconds_until(num_tokens, now)
        if wait > 0:
            left = max(0, int(self._tokens.level(now)))
            text = (
                f"This key may use {self._tokens.limit} tokens a minute, and has {left} left; this request may use "
                f"{num_tokens} (its prompt and the limit of its answer)."
            )
            raise self._refusal("rate_limit_exceeded", text, wait, now)
        self._tokens.take(num_tokens, now)

    def refund(self, num_tokens: int, now: float) -> None:
        """Tokens that were reserved and not used."""
        if self._tokens is not None:
            self._tokens.take(-num_tokens, now)

    def headers(self, now: float) -> list[tuple[str, str]]:
        """x-ratelimit-limit-, -remaining- and -reset-: requests and tokens, where they are limited."""
        found = []
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found += [
                    (f"x-ratelimit-limit-{what}", str(bucket.limit)),
                    (f"x-ratelimit-remaining-{what}", str(max(0, int(bucket.level(now))))),
                    (f"x-ratelimit-reset-{what}", f"{bucket.seconds_until(bucket.limit, now):.0f}s"),
                ]
        return found

    def _refusal(self, code: str, text: str, seconds: float, now: float) -> ApiError:
        return ApiError(code, text, headers=(retry_after(seconds), *self.headers(now)))
