"""Figures and table of a sweep's parent run, refreshed as cells finish; its tables in the terminal."""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import duration, print_table, say, say_heading
from sweeps.grid import Cell, Init, traits
from sweeps.rows import Row, Score, by_replicate, finished_percents, to_csv

REFRESH_SECONDS = 60.0  # at least, between two drawings
FEWEST_CELLS = 4  # enough for both ends of two curves
PANELS = (Score.TRAIN_LOSS, Score.VAL_LOSS, Score.VAL_ACCURACY)  # their labels are the names of the files
Draw = Callable[[Axes], None]


class SweepFigures:
    """Draws the parent run's figures and writes its `results.csv`, from the rows that `read_rows` returns."""

    def __init__(self, store: Store, run_id: str, read_rows: Callable[[], list[Row]], title: str):
        self._store, self._run_id, self._read_rows, self._title = store, run_id, read_rows, title
        self._start, self._next_draw = time.monotonic(), 0.0

    def refresh(self) -> None:
        """Draw every `REFRESH_SECONDS`, once `FEWEST_CELLS` are finished."""
        if (now := time.monotonic()) < self._next_draw:
            return
        if sum(row.status == "finished" for row in self._read_rows()) >= FEWEST_CELLS:
            self.draw()
            if not self._next_draw:
                say(f"The first graph is ready after {duration(now - self._start)}: figures/ of the sweep's run")
            self._next_draw = time.monotonic() + REFRESH_SECONDS

    def draw(self) -> list[Row]:
        """Draw now: one figure per score, and `overview.png` with all three. Return the rows drawn."""
        rows = self._read_rows()
        if finished_percents(rows):
            self._store.log_figures(self._run_id, lambda: sweep_figures(rows, self._title))
        self._store.log_text(self._run_id, "results.csv", to_csv(rows))
        return rows


def sweep_figures(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """Draw one figure per score and one of all, artifact path -> figure."""
    panels = {score.label.replace(" ", "_"): scores_panel(rows, score) for score in PANELS}
    figures = {name: panel_row(panel) for name, panel in panels.items()} | {"overview": panel_row(*panels.values())}
    for figure in figures.values():
        figure.suptitle(title, fontsize=10)
    return {f"figures/{name}.png": figure for name, figure in figures.items()}


def panel_row(*panels: Draw, width: float | None = None) -> Figure:
    """Draw panels in one row; `width` is in inches."""
    n = len(panels)
    figure = Figure(figsize=(width or 1.2 + 4 * n, 4), layout="constrained")  # no pyplot: nothing has to be closed
    for axes, draw in zip(figure.subplots(1, n, squeeze=False)[0], panels, strict=True):
        draw(axes)
    return figure


def scores_panel(rows: Sequence[Row], score: Score) -> Draw:
    """Panel with the mean and the range of each init's finished replicates."""

    def draw(axes: Axes) -> None:
        for init in dict.fromkeys(row.cell.init for row in rows):
            if percents := finished_percents(rows, init):
                values, colour = score.scale * by_replicate(rows, init, score, percents), traits(init).colour
                low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
                axes.fill_between(percents, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(percents, np.nanmean(values, axis=0), "o-", markersize=3, color=colour, label=init)
        label_axes(axes, score.axis)

    return draw


def label_axes(axes: Axes, label: str, *, legend: bool = True) -> None:
    axes.set_xlabel("percent of the target's training images")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False, fontsize=8)


def print_plan(rows: Sequence[Row], to_run: Sequence[Cell]) -> None:
    """Print cell counts by status, one line per fraction."""
    counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.cell.percent, row.cell.init]["to run" if row.cell in to_run else row.status] += 1
    texts = {key: ", ".join(f"{n} {status}" for status, n in of_cells.items()) for key, of_cells in counts.items()}
    percents, inits = sorted({percent for percent, _ in texts}), list(dict.fromkeys(init for _, init in texts))
    print_table(["percent", *inits], [[str(p), *(texts.get((p, init), "") for init in inits)] for p in percents])


def print_summary(rows: Sequence[Row]) -> None:
    """Print the means over replicates, one line per fraction."""
    inits = list(dict.fromkeys(row.cell.init for row in rows))

    def mean(score: Score, init: Init, percent: int) -> str:
        values = score.scale * by_replicate(rows, init, score, [percent])
        return "-" if np.isnan(values).all() else f"{np.nanmean(values):.{score.digits}f}"

    def n_finished(percent: int) -> str:
        done = Counter(row.cell.init for row in rows if row.status == "finished" and row.cell.percent == percent)
        return str(min(done.values()))

    say_heading("Means over the finished replicates, final epoch")
    for beside in [PANELS] if len(inits) <= 3 else [(score,) for score in PANELS]:  # three inits fit side by side
        columns = list(itertools.product(beside, inits))
        lines = [[str(p), n_finished(p), *(mean(*column, p) for column in columns)] for p in finished_percents(rows)]
        print_table(
            ["percent", "replicates", *inits * len(beside)],
            lines,
            {"": 1} | {score.axis: len(inits) for score in beside},
        )
