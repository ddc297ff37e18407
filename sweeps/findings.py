"""All that a report says, as plain data: claims, predictions, differences, effective data, and where they come from.

Logged sweeps in, one `Findings` out, which `page.py` puts into words; `to_dict` is what `--json` writes, `to_csv` the
same numbers as a table.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.claims import ACCURACY, BEST, SCALED, TRAIN, VAL, Verdict, judge
from sweeps.comparison import Comparison, compare
from sweeps.grid import Init
from sweeps.logged import LoggedSweep
from sweeps.predictions import predict
from sweeps.statistics import MIN_REPLICATES, Crossover, EffectiveData, effective_data, find_crossover, flip_test
from sweeps.table import by_replicate

DIFFERENCES = {
    "train_loss": TRAIN,
    "val_loss": VAL,
    "best_val_loss": BEST,
    "scaled_val_loss": SCALED,
    "val_accuracy": ACCURACY,
}
TEST_ACCURACY = "test/accuracy"


@dataclass(frozen=True)
class Point:
    """random - pretrained of one score at one fraction. `low` and `high` are of the band; p is adjusted."""

    percent: int
    mean: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class InitLine:
    """One init at one fraction: means over its own finished replicates."""

    init: Init
    percent: int
    n_replicates: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Findings:
    """What one sweep says, with others beside it."""

    sweep: LoggedSweep
    others: tuple[LoggedSweep, ...]
    pair: Comparison
    claims: dict[str, Verdict]
    predictions: dict[str, Verdict]
    differences: dict[str, tuple[Point, ...]]
    crossover: Crossover | None
    uncertain: tuple[int, ...]
    """Fractions at which the band of the validation loss contains 0: the crossover's interval."""
    effective: EffectiveData | None
    inits: tuple[InitLine, ...]

    @property
    def missing(self) -> list[str]:
        """Cells of the grid that are not finished."""
        return [f"{row.cell.name} ({row.status})" for row in self.sweep.rows if row.status != "finished"]

    def to_dict(self) -> dict[str, Any]:
        cross = self.crossover
        return {
            "sweep_run_id": self.sweep.run_id,
            "compared_with": [other.run_id for other in self.others],
            "n_replicates": self.pair.n,
            "claims": {name: claim.to_dict() for name, claim in self.claims.items()},
            "predictions": {name: one.to_dict() for name, one in self.predictions.items()},
            "crossover_percent": cross.percent if cross else None,
            "crossover": {
                "percent": cross.percent if cross else None,
                "never_share": cross.never if cross else None,
                "claimable": bool(cross and cross.is_claimable and not self.pair.too_few),
                "fractions_with_0_in_the_band": list(self.uncertain),
            },
            "effective_data": self._effective_rows(),
            "band": {name: [vars(point) for point in points] for name, points in self.differences.items()},
            "recipes": {
                init: {str(percent): vars(setting) for percent, setting in of_init.items()}
                for init, of_init in self.sweep.chosen.items()
            },
            "missing": self.missing,
        }

    def _effective_rows(self) -> list[dict[str, Any]]:
        data = self.effective
        if data is None:
            return []
        return [
            {
                "percent": percent,
                "effective_percent": float(data.effective[i]),
                "transferred_percent": float(data.transferred[i]),
                "multiplier": float(data.multiplier[i]),
                "low": float(data.low[i]),
                "high": float(data.high[i]) if np.isfinite(data.high[i]) else None,
                "at_least": bool(data.at_least[i]),
                "at_most": bool(data.at_most[i]),
            }
            for i, percent in enumerate(self.pair.percents)
        ]

    def to_csv(self) -> str:
        """One line a number: what it is, of which init, at which fraction, its interval, its p, replicates, verdict."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["quantity", "init", "percent", "value", "low", "high", "p", "n_replicates", "verdict"])
        n = self.pair.n
        for kind, verdicts in (("claim", self.claims), ("prediction", self.predictions)):
            for name, one in verdicts.items():
                low, high = one.interval or (None, None)
                numbers = map(_number, (one.effect, low, high, None))
                writer.writerow([f"{kind} {name}", "", one.percent or "", *numbers, one.n_replicates, one.verdict])
        for name, points in self.differences.items():
            for point in points:
                numbers = map(_number, (point.mean, point.low, point.high, point.p))
                writer.writerow([f"difference {name}", "random - pretrained", point.percent, *numbers, n, ""])
        for row in self._effective_rows():
            numbers = map(_number, (row["multiplier"], row["low"], row["high"], None))
            bound = "at least" if row["at_least"] else "at most" if row["at_most"] else ""
            writer.writerow(["effective data multiplier", "pretrained", row["percent"], *numbers, n, bound])
        for line in self.inits:
            for name in ("train_loss", "val_loss", "val_accuracy", "test_accuracy"):
                value = _number(getattr(line, name))
                writer.writerow([f"mean {name}", line.init, line.percent, value, "", "", "", line.n_replicates, ""])
        return stream.getvalue()


def find(sweep: LoggedSweep, others: Sequence[LoggedSweep] = ()) -> Findings:
    """Everything that the logged runs say."""
    pair = compare(sweep.rows)
    differences, crossover, effective = {}, None, None
    uncertain: tuple[int, ...] = ()
    if pair.n:
        differences = {name: points for name, score in DIFFERENCES.items() if (points := _points(pair, score))}
        d = pair.difference(VAL)
        crossover = find_crossover(d.percents, d.d)
        if (band := d.intervals) is not None:
            uncertain = tuple(int(p) for p in d.percents[(band.low <= 0) & (band.high >= 0)])
        if len(pair.percents) > 1:
            effective = effective_data(d.percents, pair.scores(pair.baseline, VAL), pair.scores(pair.init, VAL))
    return Findings(
        sweep=sweep,
        others=tuple(others),
        pair=pair,
        claims=judge(sweep.rows),
        predictions=predict(sweep, others),
        differences=differences,
        crossover=crossover,
        uncertain=uncertain,
        effective=effective,
        inits=tuple(_init_lines(sweep)),
    )


def _points(pair: Comparison, score: str) -> tuple[Point, ...]:
    d = pair.difference(score)
    if np.isnan(d.d).any():
        return ()  # cells of an earlier version have no such score
    p = flip_test(d.d).each if d.n >= MIN_REPLICATES else None
    points = []
    for i, percent in enumerate(pair.percents):
        low, high = d.interval(i) or (None, None)
        points.append(Point(percent, d.at(i), low, high, None if p is None else float(p[i])))
    return tuple(points)


def _init_lines(sweep: LoggedSweep) -> list[InitLine]:
    lines = []
    for init in sweep.inits:
        for percent in sorted({row.cell.percent for row in sweep.rows if row.cell.init == init}):
            values = [
                by_replicate(sweep.rows, init, score, [percent]) for score in (TRAIN, VAL, ACCURACY, TEST_ACCURACY)
            ]
            n = int((~np.isnan(values[1])).sum())
            if n:
                lines.append(InitLine(init, percent, n, *(float(np.nanmean(value)) for value in values)))
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
