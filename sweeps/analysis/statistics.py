"""Comparison of two inits: arrays in, numbers out (numpy and scipy only).

d[r, f] = log loss(random) - log loss(pretrained) in replicate r at fraction f, or a difference of accuracies. A loss
above 0 means that pretraining helps. Leading axes, as simulations have them, are passed through.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import digamma, ndtri, stdtr, stdtrit, zeta

# Fewest replicates of a verdict. From here on simulated intervals cover the truth in at least 94 % of the sweeps for
# normal, t3 and measured differences: python -m pytest -m slow -s tests/sweeps/analysis/test_simulation.py
FLOOR = 4
# Most degrees of freedom of the prior, per degree of freedom of the replicates. Five fractions tell little about how
# much variances differ: with 3 instead of 1/2 intervals cover 88 to 92 % at 4 replicates, by the same simulation.
MOST_PRIOR = 0.5
LEVEL, POWER = 0.95, 0.8
N_GRID = 400  # points at which limits of effective data are searched: 0.8 % apart from 5 to 100 %
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Intervals(NamedTuple):
    """Mean difference with simultaneous confidence limits, each [n_fractions]."""

    mean: Array
    low: Array
    high: Array


class Prior(NamedTuple):
    """Inverse chi-square prior of variances that follow a trend over fractions (Smyth 2004)."""

    scale: Array  # [n_fractions], from the trend
    df: Array  # degrees of freedom, [1]
    leverage: Array  # share of its own variance in each fraction's scale, [n_fractions]


@dataclass(frozen=True)
class Estimate:
    """Mean differences with moderated variances, each [n_fractions]; where a variance is NaN, nothing is shown."""

    mean: Array
    variance: Array  # moderated, of one replicate
    image_variance: Array  # of the mean: the judged images are a sample, which replicates do not average out
    n: int  # replicates
    df: Array  # degrees of freedom

    @property
    def se(self) -> Array:
        return np.sqrt(self.variance / self.n + self.image_variance)

    def above(self, limit: Array | float = 0.0) -> Array:
        """One-sided p that the mean is above `limit`, [n_fractions]."""
        return stdtr(self.df, (limit - self.mean) / self.se)

    def below(self, limit: Array | float = 0.0) -> Array:
        """One-sided p that the mean is below `limit`, [n_fractions]."""
        return stdtr(self.df, (self.mean - limit) / self.se)

    def within(self, margin: float) -> Array:
        """p of two one-sided tests that the mean lies within +-margin (Schuirmann 1987), [n_fractions]."""
        return np.maximum(self.above(-margin), self.below(margin))

    def intervals(self, n_together: int | None = None) -> Intervals:
        """95 % intervals that hold together for `n_together` fractions (default: all of them; Bonferroni)."""
        half = stdtrit(self.df, 1 - (1 - LEVEL) / 2 / (n_together or self.mean.shape[-1])) * self.se
        return Intervals(self.mean, self.mean - half, self.mean + half)

    def needed(self, distance: Array, alpha: float = 0.05) -> Array:
        """Replicates with which a one-sided test at `alpha` has about 80 % power, [n_fractions].

        distance: from the observed mean to the tested limit, above 0 on the side that would be shown. inf where more
        replicates do not help: on the wrong side, or where the image variance alone is too large.
        """
        z = ndtri(1 - alpha)
        room = np.sign(distance) * (distance / (z + ndtri(POWER))) ** 2 - self.image_variance
        return np.where(room > 0, self.variance / np.where(room > 0, room, 1.0) + z**2 / 2, np.inf)


def estimate(
    d: Array, fractions: Array | None = None, image_variance: Array | None = None, prior: Prior | None = None
) -> Estimate:
    """Mean and moderated variance of d [n_replicates, n_fractions]. Raises ValueError below two replicates.

    fractions: [n_fractions] for a trend of log variance in log fraction, None for a constant one. image_variance:
    [n_fractions], squared standard error of the mean from the judged images. prior: by default that of d. Few fractions
    make the trend noisy, and each fraction's own variance is part of it. So the degrees of freedom are not Smyth's
    df + prior df, but what the spread of the moderated log variance amounts to where that is less.
    """
    n = d.shape[-2]
    if n < 2:
        raise ValueError(f"{n} replicates; an interval needs 2")
    scale, prior_df, leverage = prior or prior_of(d, fractions)
    variance, df = _variance(d), n - 1
    own = df / (prior_df + df)  # weight of each fraction's own variance
    moderated = np.where(variance > 0, own * variance + (1 - own) * scale, np.nan)
    moderated_df = np.minimum(df / own, df / (leverage + (1 - leverage) * own**2))
    images = np.zeros(d.shape[-1]) if image_variance is None else image_variance
    return Estimate(d.mean(axis=-2), moderated, images, n, moderated_df)


def intervals(d: Array, fractions: Array | None = None, image_variance: Array | None = None) -> Intervals:
    """Simultaneous 95 % intervals of the mean of d [n_replicates, n_fractions]; arguments as in `estimate`."""
    return estimate(d, fractions, image_variance).intervals()


def _variance(d: Array) -> Array:
    """Sample variance over replicates; 0 where there are only rounding errors."""
    variance: Array = d.var(axis=-2, ddof=1)
    return np.where(variance > 1e-20 * (d**2).mean(axis=-2), variance, 0.0)


def prior_of(d: Array, fractions: Array | None = None) -> Prior:
    """Fit the prior of the variances of d by moments (Smyth 2004, section 6.2), with a linear trend in log fraction."""
    df, n = d.shape[-2] - 1, d.shape[-1]
    variance, columns = _variance(d), [np.ones(n)]
    if fractions is not None:
        columns.append(np.log(fractions))
    # The prior has no weight where a variance is 0, or where there are no more fractions than parameters of the trend.
    is_usable = (variance > 0).all(axis=-1, keepdims=True) & (n > len(columns))
    logs = np.log(np.where(is_usable, variance, 1.0)) - digamma(df / 2) + np.log(df / 2)
    basis, _ = np.linalg.qr(np.stack(columns, axis=1))
    trend = logs @ basis @ basis.T
    spread = ((logs - trend) ** 2).sum(axis=-1, keepdims=True) / max(n - len(columns), 1)
    prior_df = 2 * _inverse_trigamma(np.clip(spread - zeta(2, df / 2), 1e-6, 1e4))
    scale = np.exp(trend + digamma(prior_df / 2) - np.log(prior_df / 2))
    return Prior(scale, np.where(is_usable, np.minimum(prior_df, MOST_PRIOR * df), 0.0), (basis**2).sum(axis=1))


def _inverse_trigamma(x: Array) -> Array:
    """y with trigamma(y) = zeta(2, y) = x, by Newton steps on 1 / trigamma (Smyth 2004, appendix)."""
    y: Array = 0.5 + 1 / x
    for _ in range(8):
        trigamma = zeta(2, y)
        y = y - trigamma * (1 - trigamma / x) / (2 * zeta(3, y))  # the derivative of trigamma is -2 zeta(3, y)
    return y


def image_variance(random: Array, pretrained: Array, *, is_log: bool, half: tuple[Array, Array] | None = None) -> float:
    """Squared standard error of a mean difference that is due to the judged images (delta method); NaN for a loss of 0.

    random, pretrained: means over replicates for each image, [n_images]: losses in nats if `is_log`, as logs of their
    means; else correctness in [0, 1]. half: two more such arrays, half of whose difference is subtracted.
    """

    def influence(a: Array, b: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return a / a.mean() - b / b.mean() if is_log else a - b

    of_images = influence(random, pretrained) - (influence(*half) / 2 if half else 0.0)
    return float(of_images.var(ddof=1) / len(of_images))


@dataclass(frozen=True)
class EffectiveData:
    """Target data that pretraining is worth at each fraction D_F, each [n_fractions] (Hernandez et al. 2021)."""

    effective: Array  # D_E: the percent of the data at which the random curve reaches the pretrained loss
    multiplier: Array  # D_E / D_F
    low: Array  # limits of the multiplier; 0 and inf where they lie outside of the range of fractions
    high: Array
    at_least: Mask  # right-censored: pretrained is below the random curve's end, so D_E is the last fraction or more
    at_most: Mask  # left-censored: pretrained is above the curve's start, so D_E is the first fraction or less


@dataclass(frozen=True)
class DataCurves:
    """Loss against the amount of data, to compare pretrained with random on more or less data.

    Log losses are linear in the log of the fraction between the fractions, and the mean of random's curve is made
    monotone by averaging neighbours.
    """

    fractions: Array  # [n_fractions], percents or numbers of images, ascending
    random: Array  # losses above 0, [n_replicates, n_fractions]
    pretrained: Array
    image_variance: Array | None = None  # of their difference of logs

    def excess(self, at: Array) -> Estimate:
        """log loss(random with `at` of the data) - log loss(pretrained), at [..., n_fractions]; NaN out of range."""
        # Priors and image variances are those at equal data: a little too large, as interpolation averages two cells.
        logs = np.log(self.fractions)
        weights = np.stack([np.interp(np.log(at), logs, unit, np.nan, np.nan) for unit in np.eye(len(logs))], axis=-1)
        pretrained = np.log(self.pretrained)
        c = np.einsum("...fj,nj->...nf", weights, self._monotone()) - pretrained
        prior = prior_of(np.log(self.random) - pretrained, self.fractions)
        return estimate(c, image_variance=self.image_variance, prior=prior)

    def effective_data(self, n_together: int = 1) -> EffectiveData:
        """Effective data with limits, each one-sided at 1 - 0.025 / n_together."""
        # They hold every amount at which `excess` is not shown to differ from 0 (Fieller); a bootstrap is too narrow.
        fractions, logs = self.fractions, np.log(self.fractions)
        curve, pretrained = self._monotone().mean(axis=0), np.log(self.pretrained).mean(axis=0)
        effective = np.exp(np.interp(-pretrained, -curve, logs))
        grid = np.geomspace(fractions[0], fractions[-1], N_GRID)
        excess = self.excess(np.tile(grid[:, None], len(fractions)))
        is_more, is_less = (p < 0.025 / n_together for p in (excess.above(), excess.below()))  # [n_grid, n_fractions]
        # A limit lies at the last point that is still excluded, or nowhere.
        low = np.where(is_more.any(axis=0), grid[N_GRID - 1 - is_more[::-1].argmax(axis=0)], 0.0)
        high = np.where(is_less.any(axis=0), grid[is_less.argmax(axis=0)], np.inf)
        at_least, at_most = pretrained < curve[-1], pretrained > curve[0]
        return EffectiveData(effective, effective / fractions, low / fractions, high / fractions, at_least, at_most)

    def _monotone(self) -> Array:
        """Log losses of random, averaged over neighbouring fractions where their mean rises."""
        logs = np.log(self.random)
        blocks = isotonic_regression(logs.mean(axis=0), increasing=False).blocks
        parts = [logs[:, a:b].mean(axis=1, keepdims=True).repeat(b - a, axis=1) for a, b in itertools.pairwise(blocks)]
        return np.concatenate(parts, axis=1)
