"""A recording without its texts: token ids become keyed hashes, and the core decides the same.

The core compares token ids and never reads them: blocks when it looks for a cached prefix, single ones when a stop
token ends an answer. So every token is replaced by a hash of all tokens up to it, which is equal exactly where whole
prefixes are equal, and tells nothing about a single token. Stop tokens are renamed with the tokens that were sampled,
and whatever else of the parameters could speak of the text is left out.
"""

from __future__ import annotations

import hashlib

import msgspec

from quire.engine.messages import Add, pack_ids, unpack_ids
from quire.engine.recorder import Recording, Turn
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, Sampled, SampledRow, Step

_POSITIVE = 0x7FFFFFFF

Name = tuple[str, int]


class _Life:
    """What is known of one choice: its tokens, as far as the recording goes."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.fakes: list[int] = []
        self.num_prompt_tokens = 0


def disguise(recording: Recording, secret: bytes) -> Recording:
    """The same recording with other token ids; with another `secret` they are others again."""
    lives = _lives(recording)
    for life in lives.values():
        life.fakes = _fakes(life.tokens, secret)
    stops = _stops(recording, lives)
    rows: dict[int, tuple[Name, int]] = {}
    turns = []
    for turn in recording.turns:
        messages = [(now, _plain(each, lives, stops) if isinstance(each, Add) else each) for now, each in turn.messages]
        step = None if turn.step is None else _renamed(turn.step, lives, stops, rows)
        sampled = None if turn.sampled is None else _resampled(turn.sampled, lives, rows)
        turns.append(Turn(messages, turn.readings, step, sampled, turn.raised))
    return msgspec.structs.replace(recording, turns=turns)


def _lives(recording: Recording) -> dict[Name, _Life]:
    """Every choice with its tokens, in the order in which the turns tell of them."""
    lives: dict[Name, _Life] = {}
    rows: dict[int, Name] = {}
    for turn in recording.turns:
        for _, message in turn.messages:
            if isinstance(message, Add):
                for choice in range(message.params.n):
                    life = lives[message.request_id, choice] = _Life()
                    life.tokens = unpack_ids(message.prompt_token_ids)
                    life.num_prompt_tokens = len(life.tokens)
        for new in turn.step.new_rows if turn.step is not None else ():
            rows[new.row] = new.request_id, new.choice
            life = lives.setdefault(rows[new.row], _Life())
            life.tokens, life.num_prompt_tokens = unpack_ids(new.token_ids), new.num_prompt_tokens
        for row in turn.sampled.rows if turn.sampled is not None else ():
            if row.row in rows:
                lives[rows[row.row]].tokens += row.token_ids
    return lives


def _fakes(tokens: list[int], secret: bytes) -> list[int]:
    """Another id for each token: a hash of all tokens up to it."""
    fakes: list[int] = []
    hashed = hashlib.blake2b(key=secret, digest_size=4)
    for token in tokens:
        hashed.update(token.to_bytes(4, "little"))
        fakes.append(int.from_bytes(hashed.copy().digest(), "little") & _POSITIVE)
    return fakes


def _stops(recording: Recording, lives: dict[Name, _Life]) -> dict[str, tuple[int, ...]]:
    """The stop tokens of each request under their other names: those that were sampled."""
    stops: dict[str, set[int]] = {}
    told = {message.request_id: message.params for turn in recording.turns for _, message in turn.messages
            if isinstance(message, Add)}  # fmt: skip
    told |= {new.request_id: new.params for turn in recording.turns if turn.step for new in turn.step.new_rows}
    for (request_id, _), life in lives.items():
        wanted = frozenset(told[request_id].stop_token_ids) if request_id in told else frozenset()
        pairs = list(zip(life.tokens, life.fakes, strict=True))[life.num_prompt_tokens :]
        stops.setdefault(request_id, set()).update(fake for token, fake in pairs if token in wanted)
    return {request_id: tuple(sorted(fakes)) for request_id, fakes in stops.items()}


def _params(params: SamplingParams, stop_token_ids: tuple[int, ...]) -> SamplingParams:
    return msgspec.structs.replace(
        params, stop_token_ids=stop_token_ids, logit_bias={}, allowed_token_ids=None, bad_words=(), stop=()
    )


def _plain(add: Add, lives: dict[Name, _Life], stops: dict[str, tuple[int, ...]]) -> Add:
    life = lives[add.request_id, 0]
    return msgspec.structs.replace(
        add,
        prompt_token_ids=pack_ids(life.fakes[: len(add.prompt_token_ids) // 4]),
        params=_params(add.params, stops.get(add.request_id, ())),
    )


def _renamed(
    step: Step, lives: dict[Name, _Life], stops: dict[str, tuple[int, ...]], rows: dict[int, tuple[Name, int]]
) -> Step:
    new_rows: list[NewRow] = []
    for new in step.new_rows:
        name, count = (new.request_id, new.choice), len(new.token_ids) // 4
        rows[new.row] = name, count
        ids = pack_ids(lives[name].fakes[:count])
        params = _params(new.params, stops.get(new.request_id, ()))
        new_rows.append(msgspec.structs.replace(new, token_ids=ids, params=params))
    return msgspec.structs.replace(step, new_rows=tuple(new_rows))


def _resampled(sampled: Sampled, lives: dict[Name, _Life], rows: dict[int, tuple[Name, int]]) -> Sampled:
    """Tokens of rows that began before the recording become 0."""
    found: list[SampledRow] = []
    for row in sampled.rows:
        ids = (0,) * len(row.token_ids)
        if row.row in rows:
            name, count = rows[row.row]
            ids = tuple(lives[name].fakes[count : count + len(ids)])
            rows[row.row] = name, count + len(ids)
        found.append(msgspec.structs.replace(row, token_ids=ids, logprobs=None))
    return msgspec.structs.replace(sampled, rows=tuple(found), prompt_logprobs={})
