"""Each sampler against the specification, and what it promises beside: no neighbours, no NaN, honest frequencies."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampler_reference import reference_logprob, reference_token

from quire.engine import sampler as in_pytorch
from quire.engine.compiled_sampler import CompiledSampler
from quire.engine.logprobs import slice_rows
from quire.engine.row_sampling import RowSampling
from quire.engine.sampler import Draw, Sampler, TorchSampler
from quire.engine.sampling_params import SamplingParams
from quire.kernels.cpu import library
from quire.kernels.cpu.sampling import Sampling
from quire.kernels.noise import gumbel, noise_key

VOCAB = 40
try:
    INSTRUCTION_SETS = library.usable()
except library.LibraryMissing:
    INSTRUCTION_SETS = ()


@pytest.fixture(scope="module", params=["pytorch", *INSTRUCTION_SETS])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    if request.param == "pytorch":
        return TorchSampler()
    return CompiledSampler(Sampling(library.load(request.param)))


@dataclass
class Case:
    """One row: its logits and everything that its token depends on."""

    logits: list[float]
    params: SamplingParams
    choice: int = 0
    prompt: list[int] = field(default_factory=lambda: [1, 2, 3])
    output: list[int] = field(default_factory=list)

    def row(self) -> RowSampling:
        ids = np.array(self.prompt + self.output, dtype=np.int32)
        return RowSampling(self.params, self.choice, ids, len(self.prompt), len(self.logits))

    def expected(self) -> int | str:
        return reference_token(self.logits, self.params, self.choice, self.prompt, self.output)


def drawn(cases: list[Case], sampler: Sampler) -> list[Draw]:
    logits = torch.tensor([case.logits for case in cases])
    return sampler.sample(logits, range(len(cases)), [case.row() for case in cases])


def answer(draw: Draw) -> int | str:
    return draw.token_id if draw.failure is None else draw.failure.code


def logits_of(seed: int, vocab: int = VOCAB, scale: float = 3.0) -> list[float]:
    values: list[float] = (torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale).tolist()
    return values


token_ids = st.integers(0, VOCAB - 1)
params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.2, 1.0, 2.0, 0.7]),
    top_k=st.sampled_from([0, -1, 1, 3, 10, VOCAB, 1000]),
    top_p=st.sampled_from([1.0, 0.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    presence_penalty=st.sampled_from([0.0, -1.5, 0.7, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 1.1]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 10.0]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, -1.0, 5.0, 100.0]), max_size=3),
    seed=st.integers(-(2**63), 2**63 - 1),
    min_tokens=st.integers(0, 4),
    max_tokens=st.just(100),
    stop_token_ids=st.lists(token_ids, max_size=3).map(tuple),
    allowed_token_ids=st.none() | st.lists(token_ids, min_size=1, max_size=8).map(tuple),
    bad_words=st.lists(st.lists(token_ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 5),
)
case_strategy = st.builds(
    Case,
    logits=st.integers(0, 10**6).map(logits_of),
    params=params_strategy,
    choice=st.integers(0, 15),
    prompt=st.lists(token_ids, min_size=1, max_size=6),
    output=st.lists(token_ids, max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(case_strategy, min_size=1, max_size=8))
def test_batch_equals_reference(sampler: Sampler, cases: list[Case]) -> None:
    assert [answer(draw) for draw in drawn(cases, sampler)] == [case.expected() for case in cases]


@settings(max_examples=25, deadline=None)
@given(st.lists(case_strategy, min_size=2, max_size=6))
def test_neighbours_change_nothing(sampler: Sampler, cases: list[Case]) -> None:
    together = drawn(cases, sampler)
    assert together == [drawn([case], sampler)[0] for case in cases]
    assert drawn(cases[::-1], sampler) == together[::-1]


@settings(max_examples=25, deadline=None)
@given(case_strategy)
def test_state_kept_by_appending_equals_state_built_anew(sampler: Sampler, case: Case) -> None:
    grown = Case(case.logits, case.params, case.choice, case.prompt).row()
    for token in case.output:
        grown.append(token)
    logits = torch.tensor([case.logits])
    assert sampler.sample(logits, [0], [grown]) == sampler.sample(logits, [0], [case.row()])


def test_greedy_takes_the_first_of_a_tie(sampler: Sampler) -> None:
    logits = [0.0] * VOCAB
    logits[7] = logits[5] = logits[30] = 2.0
    adjusted = SamplingParams(temperature=0, logit_bias={0: -1.0})
    assert [
        answer(d) for d in drawn([Case(logits, SamplingParams(temperature=0)), Case(logits, adjusted)], sampler)
    ] == [5, 5]


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 1e-300}, {"temperature": 5e-324}, {"top_p": 0}, {"top_k": 1}, {"min_p": 1}],
)
def test_the_narrowest_filters_are_greedy(fields: dict[str, Any], sampler: Sampler) -> None:
    for seed in range(20):
        logits = logits_of(seed)
        best = logits.index(max(logits))
        assert answer(drawn([Case(logits, SamplingParams(**fields, seed=seed))], sampler)[0]) == best


def test_top_p_counts_only_what_top_k_found(sampler: Sampler) -> None:
    """Two tokens have a weight at all; top_k asks for three, and half of the mass is the first one's."""
    logits = [-1000.0] * VOCAB
    logits[4], logits[9] = 0.0, -0.1
    cases = [Case(logits, SamplingParams(top_k=3, top_p=0.5, seed=seed)) for seed in range(20)]
    assert [answer(draw) for draw in drawn(cases, sampler)] == [4] * 20 == [case.expected() for case in cases]


def test_all_filters_at_once_choose_a_token(sampler: Sampler) -> None:
    params = SamplingParams(temperature=1e-300, top_p=0, top_k=1, min_p=1, repetition_penalty=10, seed=1)
    logits = logits_of(3, scale=1e4)
    assert 0 <= drawn([Case(logits, params)], sampler)[0].token_id < VOCAB


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0, "logit_bias": {1: 1.0}},
        {"seed": 1},
        {"seed": 1, "top_k": 5},
        {"seed": 1, "top_p": 0.5, "logprobs": 0},
        {"seed": 1, "min_p": 0.1},
    ],
)
def test_a_row_that_is_not_finite_fails_alone(value: float, fields: dict[str, Any], sampler: Sampler) -> None:
    cases = [Case(logits_of(seed), SamplingParams(**fields)) for seed in range(4)]
    clean = drawn(cases, sampler)
    cases[2].logits[17] = value
    broken = drawn(cases, sampler)
    assert answer(broken[2]) == "model_numerics"
    assert broken[:2] + broken[3:] == clean[:2] + clean[3:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": (4,), "bad_words": ((4,),)},
        {"allowed_token_ids": (4, 5), "min_tokens": 2, "stop_token_ids": (4, 5)},
        {"allowed_token_ids": (4,), "bad_words": ((2, 3, 4),)},
        {"bad_words": tuple((i,) for i in range(VOCAB))},
    ],
)
def test_a_row_with_nothing_left_fails_alone(temperature: float, fields: dict[str, Any], sampler: Sampler) -> None:
    masked = Case(logits_of(1), SamplingParams(temperature=temperature, seed=1, **fields))
    other = Case(logits_of(2), SamplingParams(temperature=temperature, seed=2))
    draws = drawn([other, masked, other], sampler)
    assert [answer(draw) for draw in draws] == [other.expected(), "no_valid_token", other.expected()]


def test_an_exception_in_one_row_fails_that_row(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    cases = [Case(logits_of(s), SamplingParams(seed=s, logit_bias={1: 1.0})) for s in range(3)]
    rows = [case.row() for case in cases]

    def explode(scores: torch.Tensor) -> None:
        scores.fill_(math.nan)
        raise RuntimeError("planted")

    monkeypatch.setattr(rows[1], "adjust", explode)
    draws = sampler.sample(torch.tensor([case.logits for case in cases]), [0, 1, 2], rows)
    assert [answer(draw) for draw in draws] == [cases[0].expected(), "internal_error", cases[2].expected()]


def test_siblings_share_a_logits_row_and_differ_by_choice(sampler: Sampler) -> None:
    case = Case([0.0] * VOCAB, SamplingParams(seed=11))
    rows = [Case(case.logits, case.params, choice).row() for choice in range(16)]
    together = sampler.sample(torch.tensor([case.logits]), [0] * 16, rows)
    alone = [drawn([Case(case.logits, case.params, choice)], sampler)[0] for choice in range(16)]
    assert together == alone
    assert len({draw.token_id for draw in together}) > 8


@pytest.mark.parametrize("top_p", [0.5, 0.99])
def test_top_p_beyond_the_first_candidates(top_p: float, monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    cases = [Case(logits_of(s, scale=0.3), SamplingParams(seed=s, top_p=top_p)) for s in range(20)]
    whole = drawn(cases, sampler)
    monkeypatch.setattr(in_pytorch, "FIRST_CANDIDATES", 4)
    assert drawn(cases, sampler) == whole
    assert [answer(draw) for draw in whole] == [case.expected() for case in cases]


def test_frequencies_follow_the_softmax(sampler: Sampler) -> None:
    """Chi-squared over 20,000 positions: 11 degrees of freedom, limit at p = 1e-6; deterministic."""
    vocab, draws, temperature = 12, 20_000, 0.8
    logits = logits_of(5, vocab, scale=1.0)
    params = SamplingParams(temperature=temperature, seed=42)
    row = Case(logits, params).row()
    counts = np.zeros(vocab)
    rows = [copy(row) for _ in range(draws)]
    for position, each in enumerate(rows):
        each.position = position
    for draw in sampler.sample(torch.tensor([logits]), [0] * draws, rows):
        counts[draw.token_id] += 1
    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0).numpy() * draws
    assert ((counts - expected) ** 2 / expected).sum() < 49.0


def test_logprobs_rank_and_top(sampler: Sampler) -> None:
    logits = [logits_of(seed) for seed in range(3)]
    tokens = [3, 8, logits[2].index(max(logits[2]))]
    entries = sampler.token_logprobs(torch.tensor(logits), tokens, [0, 4, 2])
    for row, token, entry, k in zip(logits, tokens, entries, [0, 4, 2], strict=True):
        logprob, rank = reference_logprob(row, token)
        assert (entry.token_id, entry.rank) == (token, rank)
        assert entry.logprob == pytest.approx(logprob, abs=1e-5)
        best = sorted(range(VOCAB), key=lambda t: -row[t])[:k]
        assert entry.top_token_ids == tuple(best)
        assert entry.top_logprobs == pytest.approx([reference_logprob(row, t)[0] for t in best], abs=1e-5)
    assert entries[2].rank == 1


def test_logprobs_are_of_the_raw_logits(sampler: Sampler) -> None:
    logits = logits_of(9)
    params = SamplingParams(temperature=0, logit_bias={4: 100.0}, logprobs=1)
    draw = drawn([Case(logits, params)], sampler)[0]
    assert draw.token_id == 4
    assert draw.logprobs is not None
    assert draw.logprobs.logprob == pytest.approx(reference_logprob(logits, 4)[0], abs=1e-5)
    assert draw.logprobs.top_token_ids == (logits.index(max(logits)),)


def test_slices_are_at_most_64_mib() -> None:
    assert slice_rows(151_936) * 151_936 * 4 <= 64 << 20
    assert slice_rows(10**9) == 1


def test_a_row_refuses_what_the_edge_should_have() -> None:
    with pytest.raises(ValueError, match="seed"):
        Case(logits_of(0), SamplingParams(temperature=1)).row()
    with pytest.raises(ValueError, match="token ids"):
        Case(logits_of(0), SamplingParams(temperature=0), prompt=[VOCAB]).row()


# --- two samplers, one meaning ---------------------------------------------------------------------------------------

MARGIN = 1e-5
"""What decides by less may be decided otherwise where exponentials and logarithms round otherwise."""


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def compiled(request: pytest.FixtureRequest) -> CompiledSampler:
    return CompiledSampler(Sampling(library.load(request.param)))


@cache
def many_draws(vocab: int, scale: float) -> tuple[torch.Tensor, list[RowSampling], list[Draw]]:
    """Logits, rows, and PyTorch's tokens: about 800,000 columns of noise."""
    random = torch.Generator().manual_seed(vocab)
    logits = torch.randn(min(1000, 800_000 // vocab), vocab, generator=random) * scale
    rows = []
    for i in range(len(logits)):
        params = SamplingParams(temperature=(1.0, 0.6, 1.7)[i % 3], seed=i * 7919 - 10**6)
        rows.append(RowSampling(params, i % 5, np.arange(1 + i % 3, dtype=np.int32) % vocab, 1, vocab))
    return logits, rows, TorchSampler().sample(logits, range(len(rows)), rows)


@cache
def filtered_draws(vocab: int, scale: float) -> tuple[torch.Tensor, list[RowSampling], list[Draw]]:
    """Logits in steps, so that many are equal and equal ones stand at the thresholds; PyTorch's tokens."""
    filters: list[dict[str, Any]] = [{"top_k": k} for k in (1, 2, 17, vocab - 1, vocab)]
    filters += [{"top_p": p} for p in (0.0, 0.1, 0.5, 0.9, 0.999)]
    filters += [{"min_p": 0.1}, {"top_k": 40, "top_p": 0.6}, {"top_k": 40, "top_p": 0.95, "min_p": 0.01}]
    random = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(3 * len(filters), vocab, generator=random) * scale * 4).round() / 4
    rows = []
    for i in range(len(logits)):
        params = SamplingParams(temperature=0.9, seed=i, **filters[i % len(filters)])
        rows.append(RowSampling(params, 0, np.zeros(1, dtype=np.int32), 1, vocab))
    return logits, rows, TorchSampler().sample(logits, range(len(rows)), rows)


def assert_same_tokens(sampler: Sampler, drawn: tuple[torch.Tensor, list[RowSampling], list[Draw]]) -> None:
    """Each row's token is PyTorch's, except where two noisy scores are closer than the margin."""
    logits, rows, expected = drawn
    found = sampler.sample(logits, range(len(rows)), rows)
    for scores, row, theirs, ours in zip(logits, rows, expected, found, strict=True):
        if theirs.token_id != ours.token_id:
            ids = torch.tensor([theirs.token_id, ours.token_id])
            key = torch.tensor(noise_key(row.seed, row.choice, row.position))
            noisy = (scores[ids] - scores.max()) / row.params.temperature + gumbel(key, ids)
            assert abs(noisy[0] - noisy[1]) < MARGIN * (1 + noisy.abs().max())


@pytest.mark.parametrize("vocab", [3, 257, 2048, 20_011])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 8.0])
def test_thousands_of_draws_are_those_of_pytorch(vocab: int, scale: float, compiled: CompiledSampler) -> None:
    assert_same_tokens(compiled, many_draws(vocab, scale))


@pytest.mark.parametrize("vocab", [100, 5003])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.05, 1.0, 4.0, 30.0])
def test_filters_keep_what_they_keep_in_pytorch(vocab: int, scale: float, compiled: CompiledSampler) -> None:
    assert_same_tokens(compiled, filtered_draws(vocab, scale))


@pytest.mark.parametrize("vocab", [1, 5, 16, 1023, 1025, 30_001])
def test_logprobs_are_those_of_pytorch(vocab: int, sampler: Sampler) -> None:
    """In steps as well: equal logits share the better rank, and stand in the order of their ids."""
    logits = (torch.randn(6, vocab + 9, generator=torch.Generator().manual_seed(vocab)) * 8).round()[
        :, 4 : vocab + 4
    ] / 2
    tokens, num_top = [0, vocab - 1, vocab // 2, *logits[3:].argmax(dim=1).tolist()], [0, 1, 5, 20, 3, 20]
    wanted = torch.log_softmax(logits.double(), dim=1)
    entries = sampler.token_logprobs(logits, tokens, num_top)
    for row, exact, token, k, entry in zip(logits, wanted, tokens, num_top, entries, strict=True):
        assert (entry.token_id, entry.rank) == (token, 1 + int((row > row[token]).sum()))
        assert entry.logprob == pytest.approx(float(exact[token]), abs=5e-6)
        order = sorted(range(vocab), key=lambda t, row=row: (-float(row[t]), t))[:k]  # type: ignore[misc]
        best = [float(exact[t]) for t in order]
        assert entry.top_logprobs == pytest.approx(best, abs=5e-6)
        if isinstance(sampler, CompiledSampler):  # torch.topk takes any of the equal ones at its end
            assert entry.top_token_ids == tuple(order)


def test_no_row_depends_on_threads_or_on_where_its_logits_lie(sampler: Sampler) -> None:
    logits = torch.randn(40, 3 * 1111)
    rows = [
        RowSampling(SamplingParams(seed=i, top_p=(1.0, 0.7)[i % 2], logprobs=3), 0, np.zeros(1, np.int32), 1, 1111)
        for i in range(40)
    ]
    view = logits[:, 1000:2111]
    whole = sampler.sample(view, range(40), rows)
    assert sampler.sample(view.contiguous(), range(40), rows) == whole
    assert sampler.sample(view.T.contiguous().T, range(40), rows) == whole
    if isinstance(sampler, CompiledSampler):
        try:
            library.load().set_threads(3)
            assert sampler.sample(view, range(40), rows) == whole
        finally:
            library.load().set_threads(torch.get_num_threads())
