"""Results of a sweep as a table with one row per cell: as CSV, JSON, and arrays over replicates and fractions."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
import pandas as pd

from fmnist_transfer.store import roles
from sweeps.grid import Cell, Init

Status = Literal["open", "finished", "failed"]
GROUPS = ("final", "best", "test", "heldout", "source", "distance", "cost")  # prefixes of the scores' keys


class Score(Enum):
    """One number of a finished cell: its metric key in MLflow, and how it is displayed."""

    TRAIN_LOSS = roles.TRAIN_LOSS, "training loss", "nats"
    VAL_LOSS = roles.VAL_LOSS, "validation loss", "nats"
    BEST_VAL_LOSS = roles.BEST_VAL_LOSS, "validation loss at the best epoch", "nats"
    SCALED_VAL_LOSS = roles.SCALED_VAL_LOSS, "loss after scaling", "nats"
    GAP = "final/gap", "generalisation gap", "nats"
    VAL_ACCURACY = roles.VAL_ACCURACY, "validation accuracy", "%", 2
    TEST_LOSS = "test/loss", "test loss", "nats"
    TEST_BEST_LOSS = "test/best_loss", "test loss at the best epoch", "nats"
    TEST_SCALED_LOSS = "test/scaled_loss", "test loss after scaling", "nats"
    TEST_ACCURACY = roles.TEST_ACCURACY, "test accuracy", "%", 2
    HELDOUT_LOSS = "heldout/loss", "held-out loss", "nats"
    HELDOUT_ACCURACY = "heldout/accuracy", "held-out accuracy", "%", 2
    SOURCE_BEFORE = "source/accuracy_before", "accuracy on the source half before", "%", 2
    SOURCE_AFTER = "source/accuracy_after", "accuracy on the source half after", "%", 2
    VAL_ECE = "final/val_ece", "expected calibration error"
    VAL_TEMPERATURE = "final/val_temperature", "temperature"
    DISTANCE = "distance/all", "distance from the start"

    def __init__(self, key: str, label: str, unit: str = "", digits: int = 4):
        self.key, self.label, self.unit, self.digits = key, label, unit, digits
        self.scale = 100.0 if unit == "%" else 1.0  # accuracies are logged as shares and displayed in percent
        self.is_loss = unit == "nats" and key != "final/gap"  # compared as a log ratio
        self.axis = f"{label} ({unit})" if unit else label  # label of an axis, such as `validation loss (nats)`


COLUMNS = [  # keys of the scores in a table of cells
    *("final/train_loss", "final/train_accuracy", "final/val_loss", "final/val_accuracy", "final/val_ece"),
    *("final/val_temperature", "final/val_scaled_loss", "final/gap"),
    *("best/epoch", "best/val_loss", "best/val_accuracy"),
    *("test/loss", "test/accuracy", "test/best_loss", "test/scaled_loss"),
    *("heldout/loss", "heldout/accuracy", "source/accuracy_before", "source/accuracy_after", "distance/all"),
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

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but setting and scores."""
        facts = {"percent": self.cell.percent, "init": self.cell.init, "replicate": self.cell.replicate}
        return facts | {"n_train": self.n_train, "status": self.status, "run_id": self.run_id}

    def to_dict(self) -> dict[str, Any]:
        """The row as `--json` writes it, with scores grouped by the prefixes in `GROUPS`."""
        setting = {"setting": self.cell.setting} if self.cell.change else {}
        row = self.facts | setting | {group: {} for group in GROUPS}
        for key, value in self.scores.items():
            group, _, name = key.partition("/")
            row[group][name] = value
        return row


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per cell, sorted by percent, init and replicate; missing values are NaN."""
    settings = next((row.cell.setting for row in rows if row.cell.change), {})
    columns = ["percent", "init", "replicate", "n_train", "status", *settings, *COLUMNS, "run_id"]
    ordered = sorted(rows, key=lambda row: row.cell.position)
    return pd.DataFrame([row.facts | row.cell.setting | {**row.scores} for row in ordered], columns=columns)


def to_csv(rows: Sequence[Row]) -> str:
    """`to_frame` as text, with six digits; missing values are empty."""
    return to_frame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def from_csv(text: str) -> list[Row]:
    """Read what `to_csv` wrote, but for the settings of tuned cells."""
    rows = []
    for line in pd.read_csv(io.StringIO(text)).to_dict("records"):
        scores = {key: float(line[key]) for key in COLUMNS if not math.isnan(line.get(key, math.nan))}
        cell = Cell(line["percent"], line["init"], line["replicate"])
        rows.append(Row(cell, line["n_train"], line["run_id"], line["status"], scores))
    return rows


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
