"""Results of a sweep as a table with one row per cell: as CSV, JSON, and arrays over replicates and fractions."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmnist_transfer.store import roles
from sweeps.grid import Cell, Init, RecipeChange

Status = Literal["open", "finished", "failed"]
GROUPS = ("final", "best", "test", "distance", "cost")  # prefixes of the scores' keys


@dataclass(frozen=True)
class Score:
    """One number of a finished cell: its metric key in MLflow, and how it is displayed."""

    key: str
    label: str
    unit: Literal["nats", "%", "s", ""] = ""  # accuracies are logged as shares in [0, 1] and displayed in percent
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
COLUMNS = [  # keys of the scores in a table of cells
    *("final/train_loss", "final/train_accuracy", "final/val_loss", "final/val_accuracy", "final/val_ece"),
    *("final/val_temperature", "final/val_scaled_loss", "final/gap"),
    *("best/epoch", "best/train_loss", "best/val_loss", "best/val_accuracy", "best/val_ece", "best/val_scaled_loss"),
    *("test/loss", "test/accuracy", "test/ece", "test/scaled_loss", "distance/all"),
    *("cost/seconds", "cost/train_seconds", "cost/val_seconds"),
]


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
        groups = {
            group: {
                key.removeprefix(f"{group}/"): value
                for key, value in self.scores.items()
                if key.startswith(f"{group}/")
            }
            for group in GROUPS
        }
        cell, change = self.cell, self.cell.change
        setting = {"setting": dataclasses.asdict(change)} if change else {}
        known = {"n_train": self.n_train, "run_id": self.run_id, "status": self.status}
        return {"percent": cell.percent, "init": cell.init, "replicate": cell.replicate} | setting | known | groups


def to_csv(rows: Sequence[Row]) -> str:
    """One line per cell, sorted by percent, init and replicate; missing values are empty."""
    settings = (
        [field.name for field in dataclasses.fields(RecipeChange)] if any(row.cell.change for row in rows) else []
    )
    columns = [*settings, *COLUMNS]
    lines: list[list[Any]] = [["percent", "init", "replicate", "n_train", "status", *columns, "run_id"]]
    for row in sorted(rows, key=lambda row: row.cell.position):
        cell = row.cell
        values = {**row.scores, **(dataclasses.asdict(cell.change) if cell.change else {})}
        texts = [f"{values[column]:.6g}" if column in values else "" for column in columns]
        lines.append([cell.percent, cell.init, cell.replicate, row.n_train, row.status, *texts, row.run_id])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def by_replicate(rows: Sequence[Row], init: Init, score: Score, percents: Sequence[int]) -> np.ndarray:
    """A score as logged, [n_replicates, n_percents]; NaN where a cell is not finished."""
    values = np.full((1 + max((row.cell.replicate for row in rows), default=-1), len(percents)), np.nan)
    for row in rows:
        if row.cell.init == init and score.key in row.scores and row.cell.percent in percents:
            values[row.cell.replicate, percents.index(row.cell.percent)] = row.scores[score.key]
    return values


def finished_percents(rows: Sequence[Row], init: Init | None = None) -> list[int]:
    """Fractions with at least one finished cell (of the init), in percent, ascending."""
    return sorted({r.cell.percent for r in rows if r.status == "finished" and init in (None, r.cell.init)})
