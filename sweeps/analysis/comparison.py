"""Comparison of two inits of a sweep: which replicates and fractions count, and how their scores differ.

Rows in, arrays out. A replicate counts if both inits are finished at every fraction compared. Fractions where few
replicates finished are left out if that leaves more to compare.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.analysis.statistics import (
    MIN_REPLICATES,
    Array,
    Band,
    Crossover,
    EffectiveData,
    FlipTest,
    effective_data,
    equivalence_p,
    find_crossover,
    flip_test,
    simultaneous_band,
    t_interval,
)
from sweeps.grid import Init
from sweeps.rows import VAL_LOSS, Row, Score, by_replicate

LOSS_MARGIN, ACCURACY_MARGIN = 0.005, 0.003  # in nats, and as a share; smaller differences do not matter
ANCHOR = VAL_LOSS  # every finished cell has it


@dataclass(frozen=True)
class Difference:
    """baseline - init of one score: d [n_replicates, n_fractions], and its statistics."""

    percents: Array
    d: Array
    margin: float

    @property
    def n(self) -> int:
        return len(self.d)

    @property
    def is_known(self) -> bool:
        """True if every cell has the score; cells of earlier versions may lack it."""
        return not np.isnan(self.d).any()

    @functools.cached_property
    def band(self) -> Band:
        """Simultaneous 95 % band over all fractions. Raises ValueError below six replicates."""
        return simultaneous_band(self.d)

    @property
    def intervals(self) -> Band | None:
        """The band; below six replicates a t-interval per fraction; None below two."""
        if self.n >= MIN_REPLICATES:
            return self.band
        return t_interval(self.d) if self.n >= 2 else None

    @property
    def is_equivalent(self) -> NDArray[np.bool_]:
        """True where the mean is shown to lie within the margin, each fraction by itself, [n_fractions].

        Not adjusted for several fractions: use it for one fraction, or for a claim that needs all of them.
        """
        return equivalence_p(self.d, self.margin) < 0.05

    @property
    def is_below(self) -> NDArray[np.bool_]:
        """True where the band is below 0 and the difference is not shown to be within the margin."""
        return (self.band.high < 0) & ~self.is_equivalent

    @property
    def is_not_below(self) -> NDArray[np.bool_]:
        """True where the band is above 0 or the difference is shown to be within the margin."""
        return (self.band.low > 0) | self.is_equivalent

    @property
    def is_nowhere_above(self) -> bool:
        """True if the mean is above 0 at no fraction."""
        return bool((self.d.mean(axis=0) <= 0).all())

    @functools.cached_property
    def flips(self) -> FlipTest | None:
        """Exact p-values; None below six replicates."""
        return flip_test(self.d) if self.n >= MIN_REPLICATES else None

    @functools.cached_property
    def crossover(self) -> Crossover:
        return find_crossover(self.percents, self.d)

    def t_interval(self, i: int) -> tuple[float, float] | None:
        """Paired 95 % t-interval at the i-th fraction alone; None below two replicates."""
        if self.n < 2:
            return None
        alone = t_interval(self.d[:, [i]])
        return float(alone.low[0]), float(alone.high[0])

    def interval(self, i: int) -> tuple[float, float] | None:
        """Interval at the i-th fraction, from `intervals`."""
        band = self.intervals
        return None if band is None else (float(band.low[i]), float(band.high[i]))

    def at(self, i: int) -> float:
        return float(self.d[:, i].mean())


@dataclass(frozen=True)
class Comparison:
    """`init` compared with `baseline`: d = baseline - init, so above 0 `init` has the lower loss."""

    init: Init
    baseline: Init
    percents: tuple[int, ...]
    replicates: tuple[int, ...]
    left_out: tuple[int, ...]
    """Fractions that are not compared: too few replicates finished there."""
    incomplete: tuple[int, ...]
    """Replicates that are not compared: a cell at one of the fractions is missing."""
    rows: Sequence[Row]

    @property
    def n(self) -> int:
        return len(self.replicates)

    @property
    def too_few(self) -> str:
        """Reason why nothing can be claimed; empty if something can."""
        if self.n >= MIN_REPLICATES:
            return ""
        if not self.n:
            return f"no complete replicate of {self.init} and {self.baseline}"
        return f"{self.n} complete replicate{'s' if self.n > 1 else ''}, and {MIN_REPLICATES} are the floor for a claim"

    def scores(self, init: Init, score: Score) -> Array:
        """A score as logged, [n_replicates, n_fractions]; NaN where cells of an earlier version lack it."""
        return by_replicate(self.rows, init, score, self.percents)[list(self.replicates)]

    @functools.cached_property
    def effective_data(self) -> EffectiveData:
        """Effective data for the final validation loss."""
        percents = np.array(self.percents, float)
        return effective_data(percents, self.scores(self.baseline, VAL_LOSS), self.scores(self.init, VAL_LOSS))

    @functools.cached_property
    def _differences(self) -> dict[Score, Difference]:
        return {}

    def difference(self, score: Score) -> Difference:
        """Difference of one score. Cached, so that its band, flips and resamples are computed once."""
        if score not in self._differences:
            d = self.scores(self.baseline, score) - self.scores(self.init, score)
            margin = ACCURACY_MARGIN if score.unit == "%" else LOSS_MARGIN
            self._differences[score] = Difference(np.array(self.percents, float), d, margin)
        return self._differences[score]


def compare(rows: Sequence[Row], init: Init = "pretrained", baseline: Init = "random") -> Comparison:
    """Compare two inits over the replicates in which both are finished at every fraction compared."""
    percents = sorted({row.cell.percent for row in rows if row.cell.init in (init, baseline)})
    both = ~np.isnan(by_replicate(rows, init, ANCHOR, percents) + by_replicate(rows, baseline, ANCHOR, percents))
    wanted = _choose_fractions(both)
    whole = both[:, wanted].all(axis=1) if wanted else np.zeros(len(both), bool)
    partly = both.any(axis=1) & ~whole
    return Comparison(
        init,
        baseline,
        tuple(percents[i] for i in wanted),
        tuple(map(int, np.flatnonzero(whole))),
        tuple(percents[i] for i in range(len(percents)) if i not in wanted),
        tuple(map(int, np.flatnonzero(partly))),
        rows,
    )


def _choose_fractions(both: NDArray[np.bool_]) -> list[int]:
    """Columns of both [n_replicates, n_fractions] with the most cells in complete replicates, six of them if possible.

    Candidates come from dropping, one at a time, the fraction that keeps most replicates from being complete.
    """
    wanted = [int(i) for i in np.flatnonzero(both.any(axis=0))]
    choices: list[tuple[bool, int, list[int]]] = []
    while wanted:
        n = int(both[:, wanted].all(axis=1).sum())
        choices.append((n >= MIN_REPLICATES, n * len(wanted), wanted))
        without = {i: int(both[:, [j for j in wanted if j != i]].all(axis=1).sum()) for i in wanted}
        wanted = [j for j in wanted if j != max(without, key=lambda i: without[i])]
    return max(choices, key=lambda choice: choice[:2], default=(False, 0, []))[2]
