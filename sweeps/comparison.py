"""Two inits of a sweep side by side: which replicates and fractions count, and how their scores differ.

Rows in, arrays out. A replicate counts if both inits are finished at every fraction that is compared; a fraction is
compared if it has six such replicates, or, where none has, whatever there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.grid import Init
from sweeps.statistics import MIN_REPLICATES, Array, Band, equivalence_p, simultaneous_band, t_interval
from sweeps.table import Row, by_replicate, finished_percents

LOSS_MARGIN, ACCURACY_MARGIN = 0.005, 0.003  # nats, and a share: less is no practical difference
ANCHOR = "final/val_loss"  # a finished cell has it


@dataclass(frozen=True)
class Difference:
    """baseline - init of one score: d [n_replicates, n_fractions], and what can be said of it."""

    percents: Array
    d: Array
    margin: float

    @property
    def n(self) -> int:
        return len(self.d)

    @property
    def band(self) -> Band:
        """Simultaneous over all fractions. Raises ValueError below six replicates."""
        return simultaneous_band(self.d)

    @property
    def intervals(self) -> Band | None:
        """The band; below six replicates an interval for each fraction; None without spread."""
        if self.n >= MIN_REPLICATES:
            return self.band
        return t_interval(self.d) if self.n >= 2 else None

    @property
    def is_equivalent(self) -> np.ndarray:
        """Of each fraction, whether it is shown to lie within the margin, [n_fractions]."""
        return equivalence_p(self.d, self.margin) < 0.05

    def interval(self, i: int) -> tuple[float, float] | None:
        """At the i-th fraction."""
        band = self.intervals
        return None if band is None else (float(band.low[i]), float(band.high[i]))

    def at(self, i: int) -> float:
        return float(self.d[:, i].mean())


@dataclass(frozen=True)
class Comparison:
    """`init` beside `baseline` (d = baseline - init: above 0 `init` has the lower loss)."""

    init: Init
    baseline: Init
    percents: tuple[int, ...]
    replicates: tuple[int, ...]
    left_out: tuple[int, ...]
    """Fractions of both inits that have too few replicates to be compared."""
    rows: Sequence[Row]

    @property
    def n(self) -> int:
        return len(self.replicates)

    @property
    def too_few(self) -> str:
        """Why nothing can be claimed; empty if something can."""
        if self.n >= MIN_REPLICATES:
            return ""
        if not self.n:
            return f"no complete replicate of {self.init} and {self.baseline}"
        return f"{self.n} complete replicate{'s' if self.n > 1 else ''}, and {MIN_REPLICATES} are the floor for a claim"

    def scores(self, init: Init, score: str) -> Array:
        """[n_replicates, n_fractions]; NaN where cells of an earlier version have no such score."""
        return by_replicate(self.rows, init, score, self.percents)[list(self.replicates)]

    def difference(self, score: str) -> Difference:
        d = self.scores(self.baseline, score) - self.scores(self.init, score)
        margin = ACCURACY_MARGIN if score.endswith("accuracy") else LOSS_MARGIN
        return Difference(np.array(self.percents, float), d, margin)


def compare(rows: Sequence[Row], init: Init = "pretrained", baseline: Init = "random") -> Comparison:
    """The replicates in which both inits are finished, at the fractions that have enough of them."""
    percents = finished_percents([row for row in rows if row.cell.init in (init, baseline)])
    both = ~np.isnan(by_replicate(rows, init, ANCHOR, percents) + by_replicate(rows, baseline, ANCHOR, percents))
    counts = both.sum(axis=0)
    wanted = [i for i in range(len(percents)) if counts[i] >= MIN_REPLICATES] or list(range(len(percents)))
    complete = np.flatnonzero(both[:, wanted].all(axis=1)) if wanted else np.array([], int)
    return Comparison(
        init,
        baseline,
        tuple(percents[i] for i in wanted),
        tuple(int(r) for r in complete),
        tuple(percents[i] for i in range(len(percents)) if i not in wanted),
        rows,
    )
