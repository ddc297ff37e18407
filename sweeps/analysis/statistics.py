"""Paired comparison of two inits: arrays in, numbers out (numpy and scipy only).

d[r, f] = loss(random) - loss(pretrained) in replicate r at fraction f: above 0, pretraining helps.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

MIN_REPLICATES = 6  # with fewer, an exact two-sided paired p (at least 2 / 2^N) cannot fall below 0.05
ENUMERATED_REPLICATES = 12  # up to here all 2^N sign flips; above, 2^12 sampled ones
N_BOOTSTRAP = 2_000
MAX_NEVER_CROSSING = 0.05  # a crossover is claimed if at most this share of resamples has none
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Interval = tuple[float, float]


class Band(NamedTuple):
    """Mean difference with intervals, each [n_fractions]."""

    mean: Array
    low: Array
    high: Array

    def at(self, i: int) -> Interval:
        return float(self.low[i]), float(self.high[i])


class FlipTest(NamedTuple):
    """Exact two-sided p-values of "no difference", by sign flips of whole replicates."""

    family: float  # at any fraction
    each: Array  # at each fraction, adjusted for all fractions, [n_fractions]


class Crossover(NamedTuple):
    """Fraction from which random is better, up to the largest fraction."""

    percent: float | None  # of the mean over replicates; None if there is none
    never: float  # share of bootstrap resamples of the replicates that have no crossover
    n_replicates: int

    @property
    def is_claimable(self) -> bool:
        enough = self.n_replicates >= MIN_REPLICATES
        return enough and self.percent is not None and self.never <= MAX_NEVER_CROSSING


class EffectiveData(NamedTuple):
    """Target data that pretraining is worth at each fraction D_F, each [n_fractions] (Hernandez et al. 2021).

    D_E is the percent of the data at which the random curve reaches the pretrained loss; the multiplier is D_E / D_F.
    """

    effective: Array
    multiplier: Array
    low: Array  # 95 % bootstrap interval of the multiplier; 0 and inf where resamples leave the range of fractions
    high: Array
    at_least: Mask  # right-censored: pretrained is below the random curve's end, so D_E is the last fraction or more
    at_most: Mask  # left-censored: pretrained is above the curve's start, so D_E is the first fraction or less
    resampled: Array  # multipliers of the bootstrap resamples, [n_resamples, n_fractions]

    def exceeds(self, limit: float, where: Mask) -> bool:
        """Return whether the largest multiplier at the fractions `where` exceeds `limit` in 97.5 % of the resamples."""
        return bool(where.any() and (self.resampled[:, where].max(axis=1) > limit).mean() >= 0.975)

    @property
    def transferred(self) -> Array:
        """D_T = D_E - D_F in percent; negative where pretraining costs data."""
        return self.effective - self.effective / self.multiplier


def t_interval(d: Array, level: float = 0.95) -> Band:
    """Mean and paired t-interval per fraction of d [n_replicates, n_fractions]. Raises ValueError for one replicate."""
    _check_floor(d, 2)
    return _band(d, stats.t.ppf((1 + level) / 2, len(d) - 1))


def simultaneous_band(d: Array, level: float = 0.95, seed: int = 0) -> Band:
    """A band that covers all fractions of d [n_replicates, n_fractions] at once, by max-|t| over sign flips.

    Flipping whole replicates keeps the correlation between fractions. Deviations from the mean are flipped, for d
    carries the effect: where it was large, flips of d covered 56 % instead of 95 (6 replicates, 11 fractions, 400
    simulations). Replicates must be symmetric; exponential ones are covered in 86 to 89 of 100. Raises ValueError below
    six replicates.
    """
    _check_floor(d)
    t = _absolute_t(d - d.mean(axis=0), _sign_flips(len(d), seed))
    finite = t[np.isfinite(t)].max(initial=0.0)  # a flip of tied values may have no spread
    return _band(d, np.quantile(np.minimum(t, finite).max(axis=1), level, method="higher"))


def _band(d: Array, critical: float) -> Band:
    mean, half = d.mean(axis=0), critical * d.std(axis=0, ddof=1) / np.sqrt(len(d))
    return Band(mean, mean - half, mean + half)


def _check_floor(d: Array, floor: int = MIN_REPLICATES) -> None:
    if len(d) < floor:
        raise ValueError(f"{len(d)} replicates; {floor} are the floor")


def flip_test(d: Array, seed: int = 0) -> FlipTest:
    """max-|t| test over sign flips of d [n_replicates, n_fractions], exact if d is symmetric under the null hypothesis.

    Raises ValueError below six replicates.
    """
    _check_floor(d)
    observed = _absolute_t(d, np.ones((1, len(d))))[0]
    largest = _absolute_t(d, _sign_flips(len(d), seed)).max(axis=1)
    least = observed - 1e-9 * np.where(np.isfinite(observed), 1 + observed, 1)  # for rounding errors
    return FlipTest(float((largest >= least.max()).mean()), (largest[:, None] >= least[None]).mean(axis=0))


def _sign_flips(n: int, seed: int) -> Array:
    """Signs +-1, [n_flips, n]; the first row is all +1."""
    if n <= ENUMERATED_REPLICATES:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    flips = np.random.default_rng(seed).choice((1.0, -1.0), (2**ENUMERATED_REPLICATES, n))
    flips[0] = 1.0
    return flips


def _absolute_t(d: Array, flips: Array) -> Array:
    """|t| of each fraction under each flip, [n_flips, n_fractions]; without spread infinite, or 0 if the mean is 0."""
    n = len(d)
    means = flips @ d / n
    square = (d**2).sum(axis=0)  # the same under every flip
    variance = np.maximum(square - n * means**2, 0) / (n - 1)
    variance[variance <= 1e-12 * square / n] = 0  # only rounding errors
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(means) / np.sqrt(variance / n)
    return np.where(np.isnan(t), 0.0, t)


def equivalence_p(d: Array, margin: float) -> Array:
    """p of two one-sided t-tests, [n_fractions]: below 0.05, the mean lies within +-margin (Schuirmann 1987).

    Raises ValueError below two replicates.
    """
    _check_floor(d, 2)
    with np.errstate(divide="ignore"):
        t = (margin - np.abs(d.mean(axis=0))) / (d.std(axis=0, ddof=1) / np.sqrt(len(d)))
    return stats.t.sf(t, len(d) - 1)


def crossover(percents: Array, mean: Array) -> float | None:
    """Percent from which on `mean` is no longer positive, interpolated linearly in log percent.

    None if the mean is positive at the end or nowhere. A dip below 0 from which it recovers is no crossover.
    """
    positive = np.flatnonzero(mean > 0)
    if not len(positive) or positive[-1] == len(mean) - 1:
        return None
    return _percent_at(0.0, percents, mean, int(positive[-1]))


def _percent_at(level: float, percents: Array, curve: Array, i: int) -> float:
    """Percent at which the curve falls to `level` between the i-th fraction and the next, linear in log percent."""
    share = (curve[i] - level) / (curve[i] - curve[i + 1])
    logs = np.log(percents[i : i + 2])
    return float(np.exp(logs[0] + share * (logs[1] - logs[0])))


def find_crossover(percents: Array, d: Array, seed: int = 0) -> Crossover:
    """Crossover of the mean of d [n_replicates, n_fractions], and the share of resamples that have none."""
    never = np.mean([crossover(percents, sample.mean(axis=0)) is None for sample in _resamples(d, seed)])
    return Crossover(crossover(percents, d.mean(axis=0)), float(never), len(d))


def _resamples(d: Array, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [d[rng.integers(0, len(d), len(d))] for _ in range(N_BOOTSTRAP)]


def effective_data(percents: Array, random: Array, pretrained: Array, seed: int = 0) -> EffectiveData:
    """Effective data from losses [n_replicates, n_fractions] at ascending `percents` (or numbers of images)."""
    effective, at_least, at_most = _reached(percents, random.mean(axis=0), pretrained.mean(axis=0))
    reached = [_reached(percents, *d.mean(axis=0)) for d in _resamples(np.stack([random, pretrained], axis=1), seed)]
    resampled = np.array([np.where(over, np.inf, np.where(under, 0.0, d_e)) / percents for d_e, over, under in reached])
    # Quantiles are not interpolated, because some multipliers are infinite.
    low = np.quantile(resampled, 0.025, axis=0, method="lower")
    high = np.quantile(resampled, 0.975, axis=0, method="higher")
    return EffectiveData(effective, effective / percents, low, high, at_least, at_most, resampled)


def _reached(percents: Array, random: Array, pretrained: Array) -> tuple[Array, Mask, Mask]:
    """Percent at which the random curve, made monotone, first reaches each pretrained loss; masks at_least, at_most."""
    curve = isotonic_regression(random, increasing=False).x
    at_least, at_most = pretrained < curve[-1], pretrained > curve[0]
    effective = np.where(at_least, percents[-1], percents[0]).astype(float)
    for f in np.flatnonzero(~at_least):
        if i := int(np.argmax(curve <= pretrained[f])):
            effective[f] = _percent_at(pretrained[f], percents, curve, i - 1)
    return effective, at_least, at_most


def image_variance(random: Array, pretrained: Array, *, is_log: bool) -> float:
    """Variance of the difference of means over images by the delta method (stand-in)."""
    d = random / random.mean() - pretrained / pretrained.mean() if is_log else random - pretrained
    return float(d.var() / len(d))
