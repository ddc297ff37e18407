"""Figures and table of a sweep's parent run, refreshed as cells finish; its tables in the terminal."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import duration, print_table, say, say_heading
from sweeps.grid import Cell, Init, traits
from sweeps.rows import Row, Score, by_replicate, finished_percents, to_csv

REFRESH_SECONDS = 60.0  # at least, between two drawings
FEWEST_CELLS = 4  # enough for both ends of two curves
PANELS = (Score.TRAIN_LOSS, Score.VAL_LOSS, Score.VAL_ACCURACY)  # their labels are the names of the files


class SweepFigures:
    """Draws the parent run's figures and writes its `results.csv`."""

    def __init__(self, store: Store, run_id: str, title: str):
        self._store, self._run_id, self._title = store, run_id, title
        self._start, self._next_draw = time.monotonic(), 0.0

    def refresh(self, read_rows: Callable[[], Sequence[Row]]) -> None:
        """Read and draw every `REFRESH_SECONDS`, once `FEWEST_CELLS` are finished."""
        if (now := time.monotonic()) < self._next_draw:
            return
        rows = read_rows()
        if sum(row.status == "finished" for row in rows) >= FEWEST_CELLS:
            self.draw(rows)
            if not self._next_draw:
                say(f"The first graph is ready after {duration(now - self._start)}: figures/ of the sweep's run")
            self._next_draw = time.monotonic() + REFRESH_SECONDS

    def draw(self, rows: Sequence[Row]) -> None:
        """Draw now: one figure per score, and `overview.png` with all three."""
        if finished_percents(rows):
            self._store.log_figures(self._run_id, lambda: sweep_figures(rows, self._title))
        self._store.client.log_text(self._run_id, to_csv(rows), "results.csv")


def sweep_figures(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """Draw one figure per score and one of all, artifact path -> figure."""
    shown = {score.label.replace(" ", "_"): (score,) for score in PANELS} | {"overview": PANELS}
    figures = {f"figures/{name}.png": scores_figure(rows, scores) for name, scores in shown.items()}
    for figure in figures.values():
        figure.suptitle(title, fontsize=10)
    return figures


def scores_figure(rows: Sequence[Row], scores: Sequence[Score], width: float | None = None) -> Figure:
    """Draw a panel per score with mean, range and number of each init's finished replicates; width: in inches."""
    n = len(scores)
    figure = Figure(figsize=(width or 1.2 + 4 * n, 4), layout="constrained")  # no pyplot: nothing has to be closed
    for axes, score in zip(figure.subplots(1, n, squeeze=False)[0], scores, strict=True):
        for init in dict.fromkeys(row.cell.init for row in rows):
            if percents := finished_percents(rows, init):
                values, colour = score.scale * by_replicate(rows, init, score, percents), traits(init).colour
                low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
                axes.fill_between(percents, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(percents, np.nanmean(values, axis=0), "o-", markersize=3, color=colour, label=init)
                for percent, top, n_cells in zip(percents, high, np.isfinite(values).sum(axis=0), strict=True):
                    axes.text(percent, top, n_cells, ha="center", va="bottom", fontsize=7, color=colour)
        axes.set(xlabel="percent of the target's training images", ylabel=score.axis)
        whole = max(row.n_train / row.cell.percent for row in rows)  # images per percent
        images = axes.secondary_xaxis("top", functions=(lambda x, n=whole: n * x, lambda x, n=whole: x / n))
        images.set_xlabel("training images")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right" if score.is_loss else "lower right", frameon=False, fontsize=8)
    return figure


def print_plan(rows: Sequence[Row], to_run: Sequence[Cell]) -> None:
    """Print cell counts by status, one line per fraction."""
    counts: dict[tuple[int, Init], Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.cell.percent, row.cell.init]["to run" if row.cell in to_run else row.status] += 1
    inits, percents = list(dict.fromkeys(row.cell.init for row in rows)), sorted({row.cell.percent for row in rows})
    texts = [[", ".join(f"{n} {status}" for status, n in counts[p, init].items()) for init in inits] for p in percents]
    print_table(["percent", *inits], [[str(p), *of_cells] for p, of_cells in zip(percents, texts, strict=True)])


def print_summary(rows: Sequence[Row]) -> None:
    """Print the means over replicates, one line per fraction."""
    inits, percents = list(dict.fromkeys(row.cell.init for row in rows)), finished_percents(rows)
    done = Counter((row.cell.percent, row.cell.init) for row in rows if row.status == "finished")
    fewest = [str(min(n for (at, _), n in done.items() if at == percent)) for percent in percents]
    for scores in [PANELS] if len(inits) <= 3 else [(score,) for score in PANELS]:  # three inits fit side by side
        say_heading(f"Means over the finished replicates, final epoch: {' | '.join(score.axis for score in scores)}")
        columns = [[*map(str, percents)], fewest]
        for score in scores:
            means = [pd.DataFrame(score.scale * by_replicate(rows, init, score, percents)).mean() for init in inits]
            texts = [[f"{mean:.{score.digits}f}".replace("nan", "-") for mean in of_init] for of_init in means]
            columns += [["|"] * len(percents), *texts]
        print_table(["percent", "replicates", *["|", *inits] * len(scores)], list(zip(*columns, strict=True)))
