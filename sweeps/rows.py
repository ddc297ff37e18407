"""Results of a sweep as a table with one row per cell: as CSV, JSON, and arrays over replicates and fractions."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmnist_transfer.store import roles
from sweeps.grid import Cell, Init

Status = Literal["open", "finished", "failed"]
GROUPS = ("final", "best", "test", "distance", "cost")  # prefixes of the scores' keys


@dataclass(frozen=True)
class Score:
    """One number of a finished cell: its metric key in MLflow, and how it is displayed."""

    key: str
    label: str
    unit: Literal["nats", "%", "s", ""] = ""
    """Accuracies are logged as shares in [0, 1] and displayed in percent."""
    digits: int = 4

    @property
    def scale(self) -> float:
        """Factor from the logged to the displayed number."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def axis(self) -> str:
        """Axis label, such as `validation loss (nats)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


TRAIN_LOSS = Score(roles.TRAIN_LOSS, "training loss", "nats")
VAL_LOSS = Score(roles.VAL_LOSS, "validation loss", "nats")
VAL_ACCURACY = Score(roles.VAL_ACCURACY, "validation accuracy", "%", 2)
VAL_ECE = Score("final/val_ece", "expected calibration error")
VAL_TEMPERATURE = Score("final/val_temperature", "temperature")
SCALED_VAL_LOSS = Score(roles.SCALED_VAL_LOSS, "loss after scaling", "nats")
GAP = Score("final/gap", "generalisation gap", "nats")
BEST_VAL_LOSS = Score(roles.BEST_VAL_LOSS, "validation loss at the best epoch", "nats")
TEST_ACCURACY = Score(roles.TEST_ACCURACY, "test accuracy", "%", 2)
DISTANCE = Score("distance/all", "distance from the start")
SCORES = (  # columns of a table of cells
    TRAIN_LOSS,
    Score("final/train_accuracy", "training accuracy", "%", 2),
    VAL_LOSS,
    VAL_ACCURACY,
    VAL_ECE,
    VAL_TEMPERATURE,
    SCALED_VAL_LOSS,
    GAP,
    Score("best/epoch", "best epoch", digits=0),
    Score("best/train_loss", "training loss at the best epoch", "nats"),
    BEST_VAL_LOSS,
    Score("best/val_accuracy", "validation accuracy at the best epoch", "%", 2),
    Score("best/val_ece", "expected calibration error at the best epoch"),
    Score("best/val_scaled_loss", "loss after scaling at the best epoch", "nats"),
    Score("test/loss", "test loss", "nats"),
    TEST_ACCURACY,
    Score("test/ece", "expected calibration error on test"),
    Score("test/scaled_loss", "test loss after scaling", "nats"),
    DISTANCE,
    Score(roles.SECONDS, "seconds", "s", 0),
    Score("cost/train_seconds", "seconds of training steps", "s", 0),
    Score("cost/val_seconds", "seconds of evaluation", "s", 0),
)


@dataclass(frozen=True)
class Row:
    """One cell. `scores` (`final/val_loss` ...) is empty unless the cell is finished."""

    cell: Cell
    n_train: int
    run_id: str
    status: Status
    scores: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The row as `--json` writes it, with scores grouped by the prefixes in `GROUPS`."""
        groups: dict[str, Any] = {group: {} for group in GROUPS}
        for key, value in self.scores.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        cell: dict[str, Any] = {"percent": self.cell.percent, "init": self.cell.init, "replicate": self.cell.replicate}
        if self.cell.change:
            cell["setting"] = dataclasses.asdict(self.cell.change)
        return cell | {"n_train": self.n_train, "run_id": self.run_id, "status": self.status} | groups


def to_csv(rows: Sequence[Row]) -> str:
    """One line per cell, sorted by percent, init and replicate; missing values are empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    tuned = ("learning_rate", "trunk_factor", "warm_up") if any(row.cell.change for row in rows) else ()
    writer.writerow(
        ["percent", "init", "replicate", "n_train", "status", *tuned, *(score.key for score in SCORES), "run_id"]
    )
    for row in sorted(rows, key=lambda row: row.cell.position):
        scores = [f"{row.scores[score.key]:.6g}" if score.key in row.scores else "" for score in SCORES]
        cell = row.cell
        setting = [f"{getattr(cell.change, name):.6g}" if cell.change else "" for name in tuned]
        line = [cell.percent, cell.init, cell.replicate, row.n_train, row.status, *setting, *scores, row.run_id]
        writer.writerow(line)
    return stream.getvalue()


def by_replicate(rows: Sequence[Row], init: Init, score: Score, percents: Sequence[int]) -> np.ndarray:
    """A score as logged, [n_replicates, n_percents]; NaN where a cell is not finished."""
    n_replicates = 1 + max((row.cell.replicate for row in rows), default=-1)
    values = np.full((n_replicates, len(percents)), np.nan)
    column = {percent: i for i, percent in enumerate(percents)}
    for row in rows:
        if row.cell.init == init and score.key in row.scores and row.cell.percent in column:
            values[row.cell.replicate, column[row.cell.percent]] = row.scores[score.key]
    return values


def finished_percents(rows: Sequence[Row]) -> list[int]:
    """Fractions with at least one finished cell, in percent, ascending."""
    return sorted({row.cell.percent for row in rows if row.status == "finished"})
