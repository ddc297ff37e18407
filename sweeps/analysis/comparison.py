"""Comparison of an init with random: which replicates and fractions count, and how their scores differ."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.analysis.statistics import FLOOR, Array, DataCurves, Estimate, Intervals, estimate
from sweeps.grid import Init
from sweeps.rows import Row, Score, by_replicate

LOSS_MARGIN, ACCURACY_MARGIN = float(np.log(1.1)), 0.003  # smaller differences do not matter: 10 %, and 0.3 points
# Image variances by score, or by (score, other) for the contrast d(score) - d(other) / 2; each [n_fractions].
ImageVariances = Mapping[Score | tuple[Score, Score], Array]


@dataclass(frozen=True)
class Difference:
    """random - init of one score: of log losses, or of accuracies."""

    percents: Array
    d: Array  # [n_replicates, n_fractions]
    image_variance: Array | None = None

    @property
    def is_known(self) -> bool:
        """False if a cell lacks the score, or a loss is 0."""
        return bool(np.isfinite(self.d).all())

    @property
    def mean(self) -> Array:
        return self.d.mean(axis=0)

    @functools.cached_property
    def estimate(self) -> Estimate:
        """Raises ValueError below two replicates."""
        return estimate(self.d, self.percents, self.image_variance)

    @property
    def intervals(self) -> Intervals | None:
        """Simultaneous 95 % intervals; None below two replicates."""
        return self.estimate.intervals() if len(self.d) >= 2 else None


@dataclass(frozen=True)
class Comparison:
    """`init` compared with random weights: random - init, so above 0 `init` has the lower loss."""

    init: Init
    rows: Sequence[Row]  # the cells of the plan that are compared
    percents: tuple[int, ...]  # judged fractions
    replicates: tuple[int, ...]
    values: Mapping[tuple[Init, Score], Array]  # as logged, [n_replicates, n_fractions]; NaN where cells lack a score
    image_variances: ImageVariances
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
        s = "s" if self.n > 1 else ""
        return "" if self.n >= FLOOR else f"{self.n} complete replicate{s}, and {FLOOR} are the floor for a verdict"

    @property
    def loss(self) -> Score:
        """Final loss on images that selected nothing."""
        return Score.TEST_LOSS if self.is_tuned else Score.HELDOUT_LOSS

    @property
    def accuracy(self) -> Score:
        """Final accuracy on images that selected nothing."""
        return Score.TEST_ACCURACY if self.is_tuned else Score.HELDOUT_ACCURACY

    def scores(self, init: Init, score: Score) -> Array:
        """A score as logged, [n_replicates, n_fractions]; NaN where cells lack it."""
        return self.values[init, score]

    def difference(self, score: Score) -> Difference:
        """Difference of one score: a log ratio if it is a loss."""
        d = self._transformed("random", score) - self._transformed(self.init, score)
        return Difference(np.array(self.percents, float), d, self.image_variances.get(score))

    def intervals(self, score: Score) -> Intervals | None:
        """Intervals to show; None below two replicates, and in an incomplete plan, where they read as verdicts."""
        return self.difference(score).intervals if self.is_complete else None

    def nats(self, score: Score) -> Difference:
        """Plain difference of one score, for tables."""
        d = self.scores("random", score) - self.scores(self.init, score)
        return Difference(np.array(self.percents, float), d)

    def contrast(self, score: Score, of: Score) -> Difference:
        """d(score) - d(of) / 2: above 0 where more than half of a deficit in `of` is gone.

        If its image variance is unknown, it is the largest that those of the two differences allow.
        """
        first, second = self.difference(score), self.difference(of)
        variance = self.image_variances.get((score, of))
        if variance is None and first.image_variance is not None and second.image_variance is not None:
            variance = (np.sqrt(first.image_variance) + np.sqrt(second.image_variance) / 2) ** 2
        return Difference(first.percents, first.d - second.d / 2, variance)

    @functools.cached_property
    def curves(self) -> DataCurves:
        random, own = (self.scores(init, self.loss) for init in ("random", self.init))
        return DataCurves(np.array(self.percents, float), random, own, self.image_variances.get(self.loss))

    def _transformed(self, init: Init, score: Score) -> Array:
        values = self.scores(init, score)
        return np.log(np.where(values > 0, values, np.nan)) if score.is_loss else values


def compare(
    rows: Sequence[Row],
    init: Init = "pretrained",
    *,
    judged: Sequence[int] = (),
    n_replicates: int | None = None,
    image_variances: ImageVariances | None = None,
    is_tuned: bool = False,
    is_complete: bool = True,
    is_extended: bool = False,
) -> Comparison:
    """Compare an init with random at the judged fractions, over the replicates that are finished at all of them.

    Without a plan (`judged`, `n_replicates`) all finished cells of the two are compared.
    """
    inits: tuple[Init, Init] = ("random", init)
    finished = [row for row in rows if row.cell.init in inits and row.status == "finished"]
    percents = tuple(sorted(judged or {row.cell.percent for row in finished}))
    n = 1 + max((row.cell.replicate for row in finished), default=-1) if n_replicates is None else n_replicates
    kept = [row for row in finished if row.cell.percent in percents and row.cell.replicate < n]
    counts = np.bincount([row.cell.replicate for row in kept], minlength=n)
    n_cells = len(inits) * len(percents)
    whole = np.flatnonzero(counts == n_cells) if n_cells else np.array([], int)
    return Comparison(
        init,
        rows=kept,
        percents=percents,
        replicates=tuple(whole.tolist()),
        values={(i, score): by_replicate(kept, i, score, percents)[whole] for i in inits for score in Score},
        image_variances=image_variances or {},
        incomplete=tuple(np.flatnonzero((counts > 0) & (counts < n_cells)).tolist()),
        n_missing=n * n_cells - len(kept),
        is_tuned=is_tuned,
        is_complete=is_complete,
        is_extended=is_extended,
    )
