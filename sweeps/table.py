"""The results of a sweep as a table: one row a cell, as CSV, as JSON, and as arrays over replicates and fractions."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeps.grid import Cell, Init

SCORES = (
    "final/train_loss",
    "final/train_accuracy",
    "final/val_loss",
    "final/val_accuracy",
    "final/val_ece",
    "final/val_temperature",
    "final/val_scaled_loss",
    "final/gap",
    "best/epoch",
    "best/train_loss",
    "best/val_loss",
    "best/val_accuracy",
    "best/val_ece",
    "best/val_scaled_loss",
    "test/loss",
    "test/accuracy",
    "test/ece",
    "test/scaled_loss",
    "distance/all",
    "cost/seconds",
    "cost/train_seconds",
    "cost/val_seconds",
)
GROUPS = ("final", "best", "test", "distance", "cost")  # prefixes of the scores
Status = Literal["open", "finished", "failed"]


@dataclass(frozen=True)
class Row:
    """One cell. `scores` (`final/val_loss` ...) is empty unless it is finished."""

    cell: Cell
    n_train: int
    run_id: str
    status: Status
    scores: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As `--json` writes it: the scores in groups `final`, `best`, `test`, `distance` and `cost`."""
        groups: dict[str, Any] = {group: {} for group in GROUPS}
        for key, value in self.scores.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        cell: dict[str, Any] = {"percent": self.cell.percent, "init": self.cell.init, "replicate": self.cell.replicate}
        if self.cell.setting:
            cell["setting"] = dataclasses.asdict(self.cell.setting)
        return cell | {"n_train": self.n_train, "run_id": self.run_id, "status": self.status} | groups


def to_csv(rows: Sequence[Row]) -> str:
    """One line a cell, in order of percent, init and replicate; what is missing is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    tuned = ("learning_rate", "trunk_factor", "warm_up") if any(row.cell.setting for row in rows) else ()
    writer.writerow(["percent", "init", "replicate", "n_train", "status", *tuned, *SCORES, "run_id"])
    for row in sorted(rows, key=lambda row: row.cell.position):
        scores = [f"{row.scores[key]:.6g}" if key in row.scores else "" for key in SCORES]
        cell = row.cell
        setting = [f"{getattr(cell.setting, name):.6g}" if cell.setting else "" for name in tuned]
        line = [cell.percent, cell.init, cell.replicate, row.n_train, row.status, *setting, *scores, row.run_id]
        writer.writerow(line)
    return stream.getvalue()


def by_replicate(rows: Sequence[Row], init: Init, score: str, percents: Sequence[int]) -> np.ndarray:
    """[n_replicates, n_percents]; NaN where a cell is not finished."""
    n_replicates = 1 + max((row.cell.replicate for row in rows), default=-1)
    values = np.full((n_replicates, len(percents)), np.nan)
    column = {percent: i for i, percent in enumerate(percents)}
    for row in rows:
        if row.cell.init == init and score in row.scores and row.cell.percent in column:
            values[row.cell.replicate, column[row.cell.percent]] = row.scores[score]
    return values


def finished_percents(rows: Sequence[Row]) -> list[int]:
    """Fractions at which some cell is finished, ascending."""
    return sorted({row.cell.percent for row in rows if row.status == "finished"})
