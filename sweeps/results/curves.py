"""Figures and table of a sweep's parent run, refreshed as cells finish, and its curve runs."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fmnist_transfer.store.roles import NOTE, TRANSFER, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import duration, print_table, say, say_heading
from sweeps.grid import Cell
from sweeps.rows import (
    BEST_VAL_LOSS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    VAL_ACCURACY,
    VAL_LOSS,
    Row,
    by_replicate,
    finished_percents,
    to_csv,
)

REFRESH_SECONDS = 60.0  # at least, between two drawings
FEWEST_CELLS = 4  # enough for both ends of two curves
CURVES = {  # the UI shows a section per prefix: first the original report's two graphs
    "curve/train_loss": TRAIN_LOSS,
    "curve/val_loss": VAL_LOSS,
    "more/val_accuracy": VAL_ACCURACY,
    "more/best_val_loss": BEST_VAL_LOSS,
    "more/test_accuracy": TEST_ACCURACY,
}
MOST_INITS_BESIDE = 3  # up to this number all scores fit side by side
SUMMARY = {"training loss": TRAIN_LOSS, "validation loss": VAL_LOSS, "validation accuracy, %": VAL_ACCURACY}


class SweepFigures:
    """Draws the parent run's figures and writes its `results.csv`.

    Args:
        read_rows: returns the current rows of the whole grid.
    """

    def __init__(self, store: Store, run_id: str, read_rows: Callable[[], list[Row]], title: str):
        self._store, self._run_id, self._read_rows, self._title = store, run_id, read_rows, title
        self._start = time.monotonic()
        self._drawn: float | None = None

    def refresh(self) -> None:
        """Draw every `REFRESH_SECONDS`, once `FEWEST_CELLS` are finished."""
        now = time.monotonic()
        if self._drawn is not None and now - self._drawn < REFRESH_SECONDS:
            return
        if sum(row.status == "finished" for row in self._read_rows()) >= FEWEST_CELLS:
            self.draw()
            if self._drawn is None:
                say(f"The first graph is ready after {duration(now - self._start)}: figures/ of the sweep's run")
            self._drawn = time.monotonic()

    def draw(self) -> list[Row]:
        """Draw now; return the rows drawn."""
        from sweeps.results.figures import sweep_figures  # imported late, so as not to delay the first cell

        rows = self._read_rows()
        self._store.log_figures(self._run_id, lambda: sweep_figures(rows, self._title))
        self._store.log_text(self._run_id, "results.csv", to_csv(rows))
        return rows


def log_curves(store: Store, sweep_run_id: str, rows: Sequence[Row]) -> None:
    """Log a run per init with the means over replicates at step = percent; comparing them draws the report's graphs.

    Earlier curve runs of the sweep are deleted, because a logged step cannot be replaced.
    """
    for old in store.find(TRANSFER, role=Role.CURVE, parent=sweep_run_id):
        store.client.delete_run(old.info.run_id)
    for init in dict.fromkeys(row.cell.init for row in rows):
        percents = sorted({row.cell.percent for row in rows if row.status == "finished" and row.cell.init == init})
        note = f"Means over the replicates of `{init}`. The step is the percent of the target's training images."
        tags = {"role": Role.CURVE, "parent": sweep_run_id, "init": init, NOTE: note}
        run_id = store.start(TRANSFER, init, parent=sweep_run_id, params={"init": init}, tags=tags)
        for key, score in CURVES.items():
            means = np.nanmean(by_replicate(rows, init, score, percents), axis=0)
            store.log(run_id, metrics=[(key, mean, p) for p, mean in zip(percents, means, strict=True)])
        store.end(run_id)


def print_plan(rows: Sequence[Row], to_run: Sequence[Cell]) -> None:
    """Print cell counts by status, one line per fraction."""
    inits = list(dict.fromkeys(row.cell.init for row in rows))
    lines = []
    for percent in sorted({row.cell.percent for row in rows}):
        line = [str(percent)]
        for init in inits:
            group = [row for row in rows if (row.cell.percent, row.cell.init) == (percent, init)]
            counts = Counter("to run" if row.cell in to_run else row.status for row in group)
            line.append(", ".join(f"{n} {status}" for status, n in counts.items()))
        lines.append(line)
    print_table(["percent", *inits], lines)


def print_summary(rows: Sequence[Row]) -> None:
    """Print the means over replicates, one line per fraction."""
    inits = list(dict.fromkeys(row.cell.init for row in rows))
    say_heading("Means over replicates, final epoch")
    beside = [list(SUMMARY)] if len(inits) <= MOST_INITS_BESIDE else [[title] for title in SUMMARY]
    for titles in beside:
        lines = []
        for percent in finished_percents(rows):
            line = [str(percent)]
            for score in (SUMMARY[title] for title in titles):
                values = [score.scale * by_replicate(rows, init, score, [percent]) for init in inits]
                line += ["-" if np.isnan(v).all() else f"{np.nanmean(v):.{score.digits}f}" for v in values]
            lines.append(line)
        print_table(["percent", *inits * len(titles)], lines, dict.fromkeys(titles, len(inits)))
