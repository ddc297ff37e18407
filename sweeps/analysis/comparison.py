"""Comparison of an init with random: which replicates and fractions count, and how their scores differ."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweeps.analysis import statistics
from sweeps.analysis.statistics import MIN_REPLICATES, Array, Band, Crossover, EffectiveData, FlipTest, Interval, Mask
from sweeps.grid import Init
from sweeps.rows import Row, Score, by_replicate

LOSS_MARGIN, ACCURACY_MARGIN = 0.005, 0.003  # in nats, and as a share


@dataclass(frozen=True)
class Difference:
    """random - init of one score, and its statistics."""

    percents: Array
    d: Array  # [n_replicates, n_fractions]
    margin: float  # smaller differences do not matter

    @property
    def n(self) -> int:
        return len(self.d)

    @property
    def is_known(self) -> bool:
        """False if a cell lacks the score, as those of earlier versions may."""
        return not np.isnan(self.d).any()

    @property
    def mean(self) -> Array:
        return self.d.mean(axis=0)

    @functools.cached_property
    def band(self) -> Band:
        """Simultaneous 95 % band over all fractions. Raises ValueError below six replicates."""
        return statistics.simultaneous_band(self.d)

    @property
    def intervals(self) -> Band | None:
        """The band; below six replicates a t-interval per fraction; None below two."""
        if self.n >= MIN_REPLICATES:
            return self.band
        return statistics.t_interval(self.d) if self.n >= 2 else None

    @property
    def is_equivalent(self) -> Mask:
        """True where the mean is shown to lie within the margin, [n_fractions]; not adjusted for several fractions."""
        return statistics.equivalence_p(self.d, self.margin) < 0.05

    @property
    def is_below(self) -> Mask:
        """True where the band is below 0 and the mean is not shown to lie within the margin."""
        return (self.band.high < 0) & ~self.is_equivalent

    @property
    def is_not_below(self) -> Mask:
        """True where the band is above 0 or the mean is shown to lie within the margin."""
        return (self.band.low > 0) | self.is_equivalent

    @functools.cached_property
    def flips(self) -> FlipTest | None:
        """Exact p-values; None below six replicates."""
        return statistics.flip_test(self.d) if self.n >= MIN_REPLICATES else None

    @functools.cached_property
    def crossover(self) -> Crossover:
        return statistics.find_crossover(self.percents, self.d)

    def t_interval(self, i: int) -> Interval | None:
        """Paired 95 % t-interval at the i-th fraction alone; None below two replicates."""
        return statistics.t_interval(self.d[:, [i]]).at(0) if self.n >= 2 else None

    def interval(self, i: int) -> Interval | None:
        return self.intervals.at(i) if self.intervals else None

    def at(self, i: int) -> float:
        return float(self.d[:, i].mean())


@dataclass(frozen=True)
class Comparison:
    """`init` compared with random weights: random - init, so above 0 `init` has the lower loss."""

    init: Init
    rows: Sequence[Row]
    percents: tuple[int, ...]
    replicates: tuple[int, ...]
    left_out: tuple[int, ...]  # fractions that are not compared: too few replicates finished there
    incomplete: tuple[int, ...]  # replicates that are not compared: a cell at one of the fractions is missing
    _differences: dict[Score, Difference] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.replicates)

    @property
    def too_few(self) -> str:
        """Reason why nothing can be claimed; empty if something can."""
        if self.n >= MIN_REPLICATES:
            return ""
        if not self.n:
            return f"no complete replicate of {self.init} and random"
        return f"{self.n} complete replicate{'s' if self.n > 1 else ''}, and {MIN_REPLICATES} are the floor for a claim"

    def scores(self, init: Init, score: Score) -> Array:
        """A score as logged, [n_replicates, n_fractions]; NaN where cells of an earlier version lack it."""
        return by_replicate(self.rows, init, score, self.percents)[list(self.replicates)]

    @functools.cached_property
    def effective_data(self) -> EffectiveData:
        random, own = self.scores("random", Score.VAL_LOSS), self.scores(self.init, Score.VAL_LOSS)
        return statistics.effective_data(np.array(self.percents, float), random, own)

    def difference(self, score: Score) -> Difference:
        """Difference of one score. Cached, so that its band, flips and resamples are computed once."""
        if score not in self._differences:
            d = self.scores("random", score) - self.scores(self.init, score)
            margin = ACCURACY_MARGIN if score.unit == "%" else LOSS_MARGIN
            self._differences[score] = Difference(np.array(self.percents, float), d, margin)
        return self._differences[score]


def compare(
    rows: Sequence[Row],
    init: Init = "pretrained",
    *,
    judged: Sequence[int],
    n_replicates: int,
    image_variances: Any = None,
    is_complete: bool = True,
    is_extended: bool = False,
) -> Comparison:
    """Compare an init with random over the replicates in which both are finished at every fraction compared.

    Fractions where few replicates finished are left out if that leaves more to compare.
    """
    rows = [row for row in rows if row.cell.replicate < n_replicates and row.cell.percent in judged]  # stand-in
    percents = sorted({row.cell.percent for row in rows if row.cell.init in (init, "random")})
    own = by_replicate(rows, init, Score.VAL_LOSS, percents)
    both = ~np.isnan(own + by_replicate(rows, "random", Score.VAL_LOSS, percents))  # all finished cells have this score
    chosen = _choose_fractions(both)
    whole = both[:, chosen].all(axis=1) if chosen else np.zeros(len(both), bool)
    return Comparison(
        init,
        rows,
        percents=tuple(percents[i] for i in chosen),
        replicates=tuple(np.flatnonzero(whole).tolist()),
        left_out=tuple(percent for i, percent in enumerate(percents) if i not in chosen),
        incomplete=tuple(np.flatnonzero(both.any(axis=1) & ~whole).tolist()),
    )


def _choose_fractions(both: Mask) -> list[int]:
    """Columns of both [n_replicates, n_fractions] with the most cells in complete replicates, six of them if possible.

    Candidates come from dropping, one at a time, the fraction that keeps most replicates from being complete.
    """

    def n_whole(columns: Sequence[int]) -> int:
        return int(both[:, columns].all(axis=1).sum())

    columns = [int(i) for i in np.flatnonzero(both.any(axis=0))]
    choices = []
    while columns:
        n = n_whole(columns)
        choices.append((n >= MIN_REPLICATES, n * len(columns), columns))
        columns = max(([j for j in columns if j != i] for i in columns), key=n_whole)
    return max(choices, key=lambda choice: choice[:2], default=(False, 0, []))[2]
