"""When requests arrive: all at once, or spread by a Poisson process or a burstier or steadier one."""

from __future__ import annotations

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start, ascending, the first at 0: `count` arrivals at `rate` a second on average.

    The gaps are drawn from a gamma distribution with shape `burstiness` and mean 1 / rate: shape 1 is a Poisson
    process, below 1 is burstier, above 1 steadier. An infinite rate sends everything at once.
    """
    if rate <= 0 or burstiness <= 0:
        raise ValueError(f"rate and burstiness must be positive, found {rate} and {burstiness}")
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1.0 / (rate * burstiness), max(0, count - 1))
    times: list[float] = np.concatenate(([0.0], np.cumsum(gaps)))[:count].tolist()
    return times
