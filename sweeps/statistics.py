"""Paired comparison of two inits: arrays in, numbers out (numpy and scipy only).

d[r, f] = loss(random) - loss(pretrained) in replicate r at fraction f, so that d > 0 means that pretraining helps.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_REPLICATES = 6  # below, an exact two-sided paired p cannot fall under 0.05: it is at least 2 / 2^N
ENUMERATED_REPLICATES = 12  # up to here all 2^N sign flips, above 2^12 sampled ones
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Mean difference with intervals, each [n_fractions]."""

    mean: Array
    low: Array
    high: Array


def t_interval(d: Array, level: float = 0.95) -> Band:
    """Mean and paired t-interval at each fraction, of d [n_replicates, n_fractions]; needs two replicates."""
    n = len(d)
    half = stats.t.ppf((1 + level) / 2, n - 1) * d.std(axis=0, ddof=1) / np.sqrt(n)
    return Band(d.mean(axis=0), d.mean(axis=0) - half, d.mean(axis=0) + half)


def simultaneous_band(d: Array, level: float = 0.95, seed: int = 0) -> Band:
    """A band that covers all fractions at once, by max-|t| over sign flips of whole replicates.

    Flipping a replicate keeps the correlation between its fractions, which nesting makes. d is
    [n_replicates, n_fractions]. Raises ValueError below six replicates.
    """
    n = len(d)
    if n < MIN_REPLICATES:
        raise ValueError(f"{n} replicates; {MIN_REPLICATES} are the floor for a claim")
    if n <= ENUMERATED_REPLICATES:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (2**ENUMERATED_REPLICATES, n))
    flipped = signs @ d / n  # means, [n_flips, n_fractions]
    square = (d**2).sum(axis=0)  # the same under every flip
    error = np.sqrt(np.maximum((square - n * flipped**2) / (n - 1), 0) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.nanmax(np.where(error > 0, np.abs(flipped) / error, np.where(flipped == 0, 0, np.inf)), axis=1)
    critical = np.quantile(largest, level, method="higher")
    mean = d.mean(axis=0)
    half = critical * d.std(axis=0, ddof=1) / np.sqrt(n)
    return Band(mean, mean - half, mean + half)


def crossover(percents: Array, mean: Array) -> float | None:
    """Percent of the last change of sign of `mean` from positive to negative, piecewise linear in log percent.

    None if it never changes so.
    """
    for i in range(len(percents) - 2, -1, -1):
        if mean[i] > 0 >= mean[i + 1]:
            share = mean[i] / (mean[i] - mean[i + 1])
            logs = np.log(percents[i : i + 2])
            return float(np.exp(logs[0] + share * (logs[1] - logs[0])))
    return None
