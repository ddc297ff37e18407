"""Comparison of an init with random: which replicates and fractions count, and how their scores differ."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmnist_transfer.terminal.output import counted
from sweeps.analysis.statistics import FLOOR, Array, DataCurves, Estimate, Intervals, estimate
from sweeps.grid import Init
from sweeps.rows import Row, Score, by_replicate

LOSS_MARGIN, ACCURACY_MARGIN = float(np.log(1.1)), 0.003  # smaller differences do not matter: 10 %, and 0.3 points
# Image variances by score, or by (score, other) for the contrast d(score) - d(other) / 2; each [n_fractions].
ImageVariances = Mapping[Score | tuple[Score, Score], Array]


def in_percent(log_ratio: Any) -> Any:
    """Log ratios of losses (a number or an array) as percent."""
    return 100 * np.expm1(log_ratio)


@dataclass(frozen=True)
class Difference:
    """random - init of one score: of log losses, or of accuracies."""

    percents: Array
    d: Array  # [n_replicates, n_fractions]
    image_variance: Array | None

    @property
    def is_known(self) -> bool:
        """False if a cell lacks the score, or a loss is 0."""
        return bool(np.isfinite(self.d).all())

    @property
    def mean(self) -> Array:
        return self.d.mean(axis=0)

    @functools.cached_property
    def estimate(self) -> Estimate:
        return estimate(self.d, self.percents, self.image_variance)


@dataclass(frozen=True)
class Comparison:
    """`init` compared with random weights: random - init, so above 0 `init` has the lower loss."""

    init: Init
    rows: Sequence[Row]  # the cells of the plan that are compared
    percents: tuple[int, ...]  # judged fractions
    replicates: tuple[int, ...]
    values: Mapping[tuple[Init, Score], Array]  # as logged, [n_replicates, n_fractions]; NaN where cells lack a score
    image_variances: ImageVariances = field(default_factory=dict)
    incomplete: tuple[int, ...] = ()  # replicates that are not compared: a cell at one of the fractions is missing
    n_missing: int = 0  # planned cells of both inits that are not finished
    is_tuned: bool = False  # validation chose the recipes, so test images alone are judged
    is_complete: bool = True
    is_extended: bool = False

    @property
    def n(self) -> int:
        return len(self.replicates)

    @property
    def no_verdict(self) -> str:
        """Reason why nothing can be claimed; empty if something can."""
        if not self.is_complete:
            return f"the plan is not complete: {self.n_missing} of its cells are missing"
        if not self.n:
            return f"no complete replicate of {self.init} and random"
        few = f"{counted(self.n, 'complete replicate')}, and {FLOOR} are the floor for a verdict"
        return few if self.n < FLOOR else ""

    @property
    def loss(self) -> Score:
        """Final loss on images that selected nothing."""
        return Score.TEST_LOSS if self.is_tuned else Score.HELDOUT_LOSS

    @property
    def accuracy(self) -> Score:
        return Score.TEST_ACCURACY if self.is_tuned else Score.HELDOUT_ACCURACY

    def difference(self, score: Score) -> Difference:
        """Difference of one score: a log ratio if it is a loss."""
        random, own = self.values["random", score], self.values[self.init, score]
        if score.is_loss:
            random, own = (np.log(np.where(values > 0, values, np.nan)) for values in (random, own))
        return Difference(np.array(self.percents, float), random - own, self.image_variances.get(score))

    def intervals(self, score: Score) -> Intervals | None:
        """Simultaneous 95 % intervals; None below two replicates, and in an incomplete plan: they read as verdicts."""
        return self.difference(score).estimate.intervals() if self.is_complete and self.n >= 2 else None

    def contrast(self, score: Score, of: Score) -> Difference:
        """d(score) - d(of) / 2: above 0 where more than half of a deficit in `of` is gone."""
        first, second = self.difference(score), self.difference(of)
        return Difference(first.percents, first.d - second.d / 2, self.image_variances.get((score, of)))

    @functools.cached_property
    def curves(self) -> DataCurves:
        random, own = self.values["random", self.loss], self.values[self.init, self.loss]
        return DataCurves(np.array(self.percents, float), random, own, self.image_variances.get(self.loss))


def compare(rows: Sequence[Row], init: Init, judged: Sequence[int], n_replicates: int) -> Comparison:
    """Compare an init with random at the judged fractions, over the replicates that are finished at all of them."""
    inits: tuple[Init, Init] = ("random", init)
    finished = [row for row in rows if row.cell.init in inits and row.status == "finished"]
    percents = tuple(sorted(judged))
    kept = [row for row in finished if row.cell.percent in percents and row.cell.replicate < n_replicates]
    counts = np.bincount([row.cell.replicate for row in kept], minlength=n_replicates)
    n_cells = len(inits) * len(percents)
    whole = np.flatnonzero(counts == n_cells) if n_cells else np.array([], int)
    return Comparison(
        init,
        rows=kept,
        percents=percents,
        replicates=tuple(whole.tolist()),
        values={(i, score): by_replicate(kept, i, score, percents)[whole] for i in inits for score in Score},
        incomplete=tuple(np.flatnonzero((counts > 0) & (counts < n_cells)).tolist()),
        n_missing=n_replicates * n_cells - len(kept),
    )
