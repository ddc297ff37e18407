"""All that a report says, as plain data: claims, differences, effective data, controls, other sweeps.

Logged sweeps in, one `Findings` out, which `render` puts into words and `figures` into pictures; `to_dict` is what
`--json` writes, `to_csv` the same numbers as a table.
"""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.analysis.claims import Verdict, judge
from sweeps.analysis.comparison import Comparison, compare
from sweeps.grid import REPORTED, Init
from sweeps.results.read import LoggedSweep
from sweeps.rows import (
    BEST_VAL_LOSS,
    DISTANCE,
    GAP,
    SCALED_VAL_LOSS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    VAL_ACCURACY,
    VAL_ECE,
    VAL_LOSS,
    VAL_TEMPERATURE,
    Row,
    Score,
    by_replicate,
)

DIFFERENCES = {
    "train_loss": TRAIN_LOSS,
    "val_loss": VAL_LOSS,
    "best_val_loss": BEST_VAL_LOSS,
    "scaled_val_loss": SCALED_VAL_LOSS,
    "val_accuracy": VAL_ACCURACY,
}
DIAGNOSIS = {  # column -> score, of each init at each fraction
    "train_loss": TRAIN_LOSS,
    "val_loss": VAL_LOSS,
    "best_val_loss": BEST_VAL_LOSS,
    "scaled_val_loss": SCALED_VAL_LOSS,
    "gap": GAP,
    "val_accuracy": VAL_ACCURACY,
    "test_accuracy": TEST_ACCURACY,
    "val_ece": VAL_ECE,
    "val_temperature": VAL_TEMPERATURE,
    "distance": DISTANCE,
}


@dataclass(frozen=True)
class Point:
    """baseline - init of one score at one fraction."""

    percent: int
    mean: float
    t_low: float | None
    t_high: float | None
    """Paired 95 % t-interval of this fraction alone."""
    low: float | None
    high: float | None
    """Simultaneous 95 % band; below six replicates the t-interval."""
    p: float | None
    """p-value by sign flips, adjusted for all fractions; None below six replicates."""


@dataclass(frozen=True)
class InitLine:
    """One init at one fraction: means over its finished replicates, and sd of the validation loss."""

    init: Init
    percent: int
    n_replicates: int
    val_loss_sd: float | None
    means: dict[str, float]
    """The scores of `DIAGNOSIS` that its cells have."""


@dataclass(frozen=True)
class Control:
    """random - init of the final validation loss."""

    init: Init
    n_replicates: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Beside:
    """One sweep in a comparison of several."""

    run_id: str
    name: str
    kind: str
    n_replicates: int
    verdicts: dict[str, str]
    points: tuple[Point, ...]
    """Differences of the final validation loss."""


@dataclass(frozen=True)
class Findings:
    """All that a report says of one sweep, with others beside it."""

    sweep: LoggedSweep
    claims: dict[str, Verdict]
    differences: dict[str, tuple[Point, ...]]
    """Score -> random minus pretrained at each fraction."""
    family_p: dict[str, float]
    """Score -> p-value of no difference at any fraction; empty below six replicates."""
    inits: tuple[InitLine, ...]
    controls: tuple[Control, ...]
    beside: tuple[Beside, ...]
    """This sweep and the others; empty without others."""

    @property
    def pair(self) -> Comparison:
        return self.sweep.pair

    @property
    def uncertain(self) -> list[int]:
        """Fractions at which the interval of the validation loss contains 0: the interval of the crossover."""
        points = self.differences.get("val_loss", ())
        return [point.percent for point in points if point.low is not None and point.low <= 0 <= (point.high or 0.0)]

    @property
    def missing(self) -> list[str]:
        """Cells of the grid that are not finished."""
        return [f"{row.cell.name} ({row.status})" for row in self.sweep.rows if row.status != "finished"]

    def effective_rows(self) -> list[dict[str, Any]]:
        """Effective data at each fraction; `high` is None where it has no bound."""
        if not self.pair.n or len(self.pair.percents) < 2:
            return []
        data = self.pair.effective_data
        return [
            {
                "percent": percent,
                "effective_percent": float(data.effective[i]),
                "transferred_percent": float(data.transferred[i]),
                "multiplier": float(data.multiplier[i]),
                "low": float(data.low[i]) if np.isfinite(data.low[i]) else float(self.pair.percents[-1] / percent),
                "high": float(data.high[i]) if np.isfinite(data.high[i]) else None,
                "at_least": bool(data.at_least[i]),
                "at_most": bool(data.at_most[i]),
            }
            for i, percent in enumerate(self.pair.percents)
        ]

    def to_dict(self) -> dict[str, Any]:
        cross = self.pair.difference(VAL_LOSS).crossover if self.pair.n else None
        return {
            "sweep_run_id": self.sweep.run_id,
            "n_replicates": self.pair.n,
            "claims": {name: claim.to_dict() for name, claim in self.claims.items()},
            "crossover_percent": cross.percent if cross else None,
            "crossover": {
                "percent": cross.percent if cross else None,
                "never_share": cross.never if cross else None,
                "claimable": bool(cross and cross.is_claimable),
                "fractions_with_0_in_the_band": self.uncertain,
            },
            "effective_data": self.effective_rows(),
            "band": {name: [vars(point) for point in points] for name, points in self.differences.items()},
            "family_p": self.family_p,
            "inits": [dataclasses.asdict(line) for line in self.inits],
            "controls": [dataclasses.asdict(control) for control in self.controls],
            "recipes": {
                init: {str(percent): vars(setting) for percent, setting in of_init.items()}
                for init, of_init in self.sweep.chosen.items()
            },
            "compared_with": [dataclasses.asdict(beside) for beside in self.beside[1:]],
            "missing": self.missing,
        }

    def to_csv(self) -> str:
        """One line a number: what it is, of which init or sweep, at which fraction, its interval, p, replicates."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["quantity", "of", "percent", "value", "low", "high", "p", "n_replicates", "remark"])
        for quantity, of, percent, values, n, remark in self._lines():
            numbers = ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow([quantity, of, "" if percent is None else percent, *numbers, n, remark])
        return stream.getvalue()

    def _lines(self) -> Iterator[tuple[str, str, int | None, tuple[float | None, ...], int, str]]:
        n = self.pair.n
        for name, claim in self.claims.items():
            interval = claim.interval or (None, None)
            yield f"claim {name}", "", claim.percent, (claim.effect, *interval, None), claim.n_replicates, claim.verdict
        of = "random - pretrained"
        for name, points in self.differences.items():
            for point in points:
                yield f"difference {name}", of, point.percent, (point.mean, point.low, point.high, point.p), n, "band"
                alone = (point.mean, point.t_low, point.t_high, None)
                yield f"difference {name}", of, point.percent, alone, n, "t-interval"
            if name in self.family_p:
                yield f"difference {name}", of, None, (None, None, None, self.family_p[name]), n, "all fractions"
        if n:
            cross = self.pair.difference(VAL_LOSS).crossover
            remark = f"none in {cross.never:.3f} of the resamples"
            yield "crossover percent", of, None, (cross.percent, None, None, None), n, remark
        for row in self.effective_rows():
            bound = "at least" if row["at_least"] else "at most" if row["at_most"] else ""
            multiplier = (row["multiplier"], row["low"], row["high"], None)
            yield "effective data multiplier", "pretrained", row["percent"], multiplier, n, bound
        for line in self.inits:
            for name, mean in line.means.items():
                yield f"mean {name}", line.init, line.percent, (mean, None, None, None), line.n_replicates, ""
        for control in self.controls:
            for point in control.points:
                values = (point.mean, point.low, point.high, point.p)
                yield "difference val_loss", f"random - {control.init}", point.percent, values, control.n_replicates, ""
        for init, of_init in self.sweep.chosen.items():
            for percent, setting in of_init.items():
                yield "recipe learning_rate", init, percent, (setting.learning_rate, None, None, None), 2, str(setting)
        for beside in self.beside[1:]:
            for point in beside.points:
                values = (point.mean, point.low, point.high, point.p)
                yield "difference val_loss", beside.run_id, point.percent, values, beside.n_replicates, beside.kind


def find(sweep: LoggedSweep, others: Sequence[LoggedSweep] = ()) -> Findings:
    """Everything that the logged runs say."""
    pair = sweep.pair
    differences = {name: points for name, score in DIFFERENCES.items() if (points := _points(pair, score))}
    flips = {name: pair.difference(DIFFERENCES[name]).flips for name in differences}
    return Findings(
        sweep=sweep,
        claims=judge(pair),
        differences=differences,
        family_p={name: flip.family for name, flip in flips.items() if flip},
        inits=tuple(_init_lines(sweep)),
        controls=tuple(_controls(sweep)),
        beside=tuple(_beside(logged) for logged in (sweep, *others)) if others else (),
    )


def kind_of(sweep: LoggedSweep) -> str:
    """Describe in a phrase how the sweep differs from others."""
    recipe = sweep.recipe
    augmentation = [name for name in ("flip", "shift", "erase") if getattr(recipe, name)]
    sources = ["a source network for each replicate"] if "sources" in sweep.params else []
    parts = [
        f"split {sweep.params.get('split', '?')}",
        "a recipe for each init" if sweep.is_tuned else "one recipe",
        f"budget {sweep.params.get('budget', '?')}",
        f"{recipe.epochs} epochs",
        f"augmentation {' and '.join(augmentation) or 'none'}",
        f"seed {sweep.params.get('seed', '?')}",
        *sources,
    ]
    return ", ".join(parts)


def _points(pair: Comparison, score: Score) -> tuple[Point, ...]:
    """Empty where there is nothing to compare, or cells of an earlier version have no such score."""
    d = pair.difference(score)
    if not d.n or not d.is_known:
        return ()
    points = []
    for i, percent in enumerate(pair.percents):
        t_low, t_high = d.t_interval(i) or (None, None)
        low, high = d.interval(i) or (None, None)
        points.append(Point(percent, d.at(i), t_low, t_high, low, high, float(d.flips.each[i]) if d.flips else None))
    return tuple(points)


def _init_lines(sweep: LoggedSweep) -> Iterator[InitLine]:
    for init in sweep.inits:
        rows = [row for row in sweep.rows if row.cell.init == init and row.status == "finished"]
        for percent in sorted({row.cell.percent for row in rows}):
            means = {
                name: mean
                for name, score in DIAGNOSIS.items()
                if (mean := _mean(rows, init, score, percent)) is not None
            }
            losses = by_replicate(rows, init, VAL_LOSS, [percent])
            n = int((~np.isnan(losses)).sum())
            yield InitLine(init, percent, n, float(np.nanstd(losses, ddof=1)) if n > 1 else None, means)


def _mean(rows: Sequence[Row], init: Init, score: Score, percent: int) -> float | None:
    values = by_replicate(rows, init, score, [percent])
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _controls(sweep: LoggedSweep) -> Iterator[Control]:
    for init in sweep.inits:
        if init not in REPORTED and (pair := compare(sweep.rows, init)).n:
            yield Control(init, pair.n, _points(pair, VAL_LOSS))


def _beside(sweep: LoggedSweep) -> Beside:
    verdicts: dict[str, str] = {name: claim.verdict for name, claim in judge(sweep.pair).items()}
    return Beside(sweep.run_id, sweep.name, kind_of(sweep), sweep.pair.n, verdicts, _points(sweep.pair, VAL_LOSS))
