"""Every answer under load against the same request sent alone, token by token.

A server whose answers depend on who else is being served is wrong in a way that no latency shows: a block of another
sequence read, a cache entry of another prompt used. So each request is sent a second time when nothing else runs, with
temperature 0 or its own seed, and the two answers must be the same. They are compared by token ids where the server
gives them, else by the tokens of its log probabilities, else by text.

The solo run must not read what the load left in the server's prefix cache, or it would repeat the fault: it carries a
`cache_salt` of its own where the server takes one.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import aiohttp

from quire.benchmarks.backends import Request
from quire.benchmarks.load import Target, ask
from quire.benchmarks.metrics import Answer

By = Literal["token ids", "tokens", "text"]
_PROBE_TOKENS = 2
_SHOWN = 20


@dataclass(frozen=True)
class Means:
    """What the server offers for the comparison."""

    by: By
    fields: dict[str, Any]
    """Of both runs."""
    salted: bool
    """Whether `cache_salt` keeps the solo run off the prefix cache."""

    def solo(self, index: int) -> dict[str, Any]:
        """Fields of one solo request."""
        salt = {"cache_salt": f"verify-{index}-{secrets.token_hex(8)}"} if self.salted else {}
        return self.fields | salt


@dataclass(frozen=True)
class Difference:
    """Where two answers part. `position` counts tokens, or characters where only text is known."""

    request: int
    unit: Literal["token", "character"]
    position: int
    under_load: str
    alone: str
    margin: float | None = None
    """Of the solo run at the position: log probability of its best token less that of the second; None: not known."""
    repeatable: bool | None = None
    """Whether a second solo run gave what the first gave; None: not tried."""


@dataclass(frozen=True)
class Verdict:
    """All comparisons of one run."""

    by: By
    compared: int
    mismatches: tuple[Difference, ...]
    near_ties: tuple[Difference, ...]
    not_compared: tuple[str, ...]
    """One reason for each request that failed under load or alone."""
    salted: bool

    @property
    def clean(self) -> bool:
        """Everything was compared, and nothing differed beyond a near tie."""
        return not self.mismatches and not self.not_compared

    def as_json(self) -> dict[str, Any]:
        """Every difference with its request."""
        return asdict(self) | {"clean": self.clean}


async def find_means(http: aiohttp.ClientSession, target: Target, request: Request) -> Means:
    """Ask for a few tokens with token ids, with log probabilities and with a salt, and see what comes.

    Raises ConnectionError when the plainest request is refused as well.
    """
    short = Request(request.prompt, request.input_tokens, _PROBE_TOKENS)

    async def offered(fields: dict[str, Any]) -> Answer | None:
        answer = await ask(http, target, short, 0, fields)
        return answer if answer.error is None else None

    plain = await ask(http, target, short, 0)
    if plain.error is not None:
        raise ConnectionError(plain.error)
    openai = bool(target.backend.logprob_fields(0))
    salted = openai and await offered({"cache_salt": "verify"}) is not None
    with_ids = await offered({"return_token_ids": True}) if openai else None
    if with_ids is not None and with_ids.token_ids:
        return Means("token ids", {"return_token_ids": True}, salted)
    logprobs = target.backend.logprob_fields(1)
    with_tokens = await offered(logprobs) if logprobs else None
    if with_tokens is not None and with_tokens.tokens:
        return Means("tokens", logprobs, salted)
    return Means("text", {}, salted)


async def verify(
    http: aiohttp.ClientSession,
    target: Target,
    requests: Sequence[Request],
    answers: Sequence[Answer],
    means: Means,
    *,
    tie: float = 0.0,
    on_answer: Callable[[], object] = lambda: None,
) -> Verdict:
    """Send every request again, one after the other. A difference with a solo margin below `tie` is a near tie."""
    mismatches: list[Difference] = []
    near_ties: list[Difference] = []
    not_compared: list[str] = []
    for request, loaded in zip(requests, answers, strict=True):
        if loaded.error is None:
            alone = await ask(http, target, request, loaded.index, means.solo(loaded.index))
            if alone.error is not None:
                not_compared.append(f"alone: {alone.error}")
            elif (found := compare(loaded, alone, means.by)) is not None:
                found = await _explain(http, target, request, means, alone, found)
                near = found.margin is not None and found.margin < tie
                (near_ties if near else mismatches).append(found)
        else:
            not_compared.append(f"under load: {loaded.error}")
        on_answer()
    compared = len(requests) - len(not_compared)
    return Verdict(means.by, compared, tuple(mismatches), tuple(near_ties), tuple(not_compared), means.salted)


def compare(loaded: Answer, alone: Answer, by: By) -> Difference | None:
    """The first difference of two answers to one request, or None. A different reason to end counts as one."""
    first: Sequence[object]
    second: Sequence[object]
    if by == "token ids":
        first, second = loaded.token_ids, alone.token_ids
    elif by == "tokens":
        first, second = loaded.tokens, alone.tokens
    else:
        first, second = loaded.text, alone.text
    position = first_difference(first, second)
    if position is None:
        if loaded.finish_reason == alone.finish_reason:
            return None
        position = len(first)
    return Difference(
        request=loaded.index,
        unit="character" if by == "text" else "token",
        position=position,
        under_load=_shown(first, position, loaded.finish_reason),
        alone=_shown(second, position, alone.finish_reason),
    )


def first_difference(first: Sequence[object], second: Sequence[object]) -> int | None:
    """The first position where one sequence differs from the other, or ends; None when they are equal."""
    pairs = itertools.zip_longest(first, second, fillvalue=None)
    return next((position for position, (one, other) in enumerate(pairs) if one != other), None)


def _shown(items: Sequence[object], position: int, finish_reason: str | None) -> str:
    if position >= len(items):
        return f"the end ({finish_reason})"
    if isinstance(items, str):
        return repr(items[position : position + _SHOWN])
    item = items[position]
    return repr(item) if isinstance(item, str) else str(item)


async def _explain(
    http: aiohttp.ClientSession, target: Target, request: Request, means: Means, alone: Answer, found: Difference
) -> Difference:
    """Ask alone once more, with log probabilities: how close the decision was, and whether solo runs agree."""
    logprobs = target.backend.logprob_fields(2)
    again = await ask(http, target, request, found.request, means.solo(found.request) | logprobs)
    if again.error is not None:
        return found
    repeatable = compare(again, alone, means.by) is None
    at = _token_at(again.tokens, found.position) if found.unit == "character" else found.position
    margin = again.margins[at] if repeatable and at < len(again.margins) else None
    known = found.unit == "token" and repeatable and at < len(again.tokens) and means.by == "token ids"
    name = f"{found.alone} {again.tokens[at]!r}" if known else found.alone
    return Difference(
        found.request, found.unit, found.position, found.under_load, name, margin=margin, repeatable=repeatable
    )


def _token_at(tokens: Sequence[str], character: int) -> int:
    """The token that holds a character of the text."""
    ends = itertools.accumulate(len(token) for token in tokens)
    return next((index for index, end in enumerate(ends) if character < end), len(tokens))


def describe(verdict: Verdict) -> str:
    """A headline, then the differences and failures, at most a screenful of them."""
    lines = [
        f"Verified {verdict.compared} answers against solo runs, by {verdict.by}: "
        f"{_number(verdict.mismatches, 'mismatch', 'es')}, {_number(verdict.near_ties, 'near tie', 's')}"
        + (f", {len(verdict.not_compared)} not compared" if verdict.not_compared else "")
    ]
    if not verdict.salted:
        lines.append("  the server takes no cache_salt: solo answers may have come from its prefix cache")
    for title, differences in (("mismatch", verdict.mismatches), ("near tie", verdict.near_ties)):
        lines += [f"  {title}: {_one(difference)}" for difference in differences[:_SHOWN]]
        if len(differences) > _SHOWN:
            lines.append(f"  and {len(differences) - _SHOWN} more")
    lines += [f"  not compared: {reason}" for reason in verdict.not_compared[:_SHOWN]]
    return "\n".join(lines)


def _number(items: Sequence[object], name: str, plural: str) -> str:
    return f"{len(items)} {name}{plural * (len(items) != 1)}"


def _one(found: Difference) -> str:
    text = f"request {found.request}, {found.unit} {found.position}: {found.under_load} under load, {found.alone} alone"
    if found.margin is not None:
        text += f" (margin {found.margin:.4g})"
    if found.repeatable is False:
        text += " (and a second solo run gave something else again)"
    return text
