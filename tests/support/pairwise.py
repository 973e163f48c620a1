"""A few cases in which every two values of different factors meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise_cases(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Cases (a value of each factor, by name) that cover every pair of values; the same list at every call.

    Greedy: a case begins with a pair that is not covered yet, and each other factor takes the value that covers most
    (Cohen et al., the AETG system, 1997).
    """
    names = list(factors)
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(range(len(names)), 2)
        for i, j in product(range(len(factors[names[a]])), range(len(factors[names[b]])))
    }
    cases = []
    while missing:
        case: dict[int, int] = dict(min(missing))
        for factor in range(len(names)):
            if factor not in case:
                options = range(len(factors[names[factor]]))
                case[factor] = max(options, key=lambda value: len(_met({**case, factor: value}) & missing))
        missing -= _met(case)
        cases.append({names[factor]: factors[names[factor]][value] for factor, value in sorted(case.items())})
    return cases


def _met(case: Mapping[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(combinations(sorted(case.items()), 2))
