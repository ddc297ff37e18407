"""Figures of a sweep's rows: scores against the fraction, while the sweep runs and at its end."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.grid import INITS, TRAITS
from sweeps.rows import TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS, Row, Score, by_replicate, finished_percents

PANELS = {"training_loss": TRAIN_LOSS, "validation_loss": VAL_LOSS, "validation_accuracy": VAL_ACCURACY}  # by file name
Draw = Callable[[Axes], None]


def sweep_figures(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """Map file name to figure: one per score, and `overview.png` with all three. Empty if nothing is finished."""
    if not finished_percents(rows):
        return {}
    panels = {name: scores_panel(rows, score) for name, score in PANELS.items()}
    figures = {f"figures/{name}.png": panel_row(panel) for name, panel in panels.items()}
    figures["figures/overview.png"] = panel_row(*panels.values())
    for figure in figures.values():
        figure.suptitle(title, fontsize=10)
    return figures


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
        for init in INITS:
            percents = sorted({row.cell.percent for row in rows if row.status == "finished" and row.cell.init == init})
            if percents:
                values = score.scale * by_replicate(rows, init, score, percents)
                low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
                axes.fill_between(percents, low, high, color=TRAITS[init].colour, alpha=0.2, linewidth=0)
                mean = np.nanmean(values, axis=0)
                axes.plot(percents, mean, marker="o", markersize=3, color=TRAITS[init].colour, label=init)
        label_axes(axes, score.axis)

    return draw


def label_axes(axes: Axes, label: str, *, legend: bool = True) -> None:
    """Label both axes; x is the fraction in percent."""
    axes.set_xlabel("percent of the target's training images")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False, fontsize=8)
