"""Figures from a table of results: a score against the fraction, every init, spread over replicates."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.grid import INITS
from sweeps.table import Row, by_replicate, finished_percents

COLOURS = {"pretrained": "#1b6ca8", "random": "#d1603d"}
PANELS = {
    "training_loss": ("final/train_loss", "training loss (nats)", 1.0),
    "validation_loss": ("final/val_loss", "validation loss (nats)", 1.0),
    "validation_accuracy": ("final/val_accuracy", "validation accuracy (%)", 100.0),
}


def sweep_figures(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """File name -> figure: one a score, and `overview.png` with all three. Empty if nothing is finished."""
    if not finished_percents(rows):
        return {}
    figures = {}
    for name, (score, label, unit) in PANELS.items():
        figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
        _draw(axes, rows, score, label, unit)
        figure.suptitle(title, fontsize=10)
        figures[f"figures/{name}.png"] = figure
    figure, panels = plt.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    for axes, (score, label, unit) in zip(panels, PANELS.values(), strict=True):
        _draw(axes, rows, score, label, unit)
    figure.suptitle(title, fontsize=10)
    return figures | {"figures/overview.png": figure}


def _draw(axes: Axes, rows: Sequence[Row], score: str, label: str, unit: float) -> None:
    """Mean over replicates, a band from the lowest to the highest, a faint dot a cell."""
    for init in INITS:
        percents = sorted({row.cell.percent for row in rows if row.status == "finished" and row.cell.init == init})
        if not percents:
            continue
        values = unit * by_replicate(rows, init, score, percents)
        colour = COLOURS[init]
        axes.plot(percents, np.nanmean(values, axis=0), color=colour, label=init, linewidth=1.8)
        axes.fill_between(percents, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.15)
        axes.plot(percents, values.T, ".", color=colour, alpha=0.35, markersize=4)
    axes.set(xlabel="share of the target's training images (%)", ylabel=label, xlim=(0, 102))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
