"""Loss against epoch: the logged curves of the compared cells, averaged over replicates."""

import itertools
from collections.abc import Sequence
from math import log
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fmnist_transfer.store.runs import Store
from sweeps.analysis.comparison import Comparison
from sweeps.grid import TRAITS, Init
from sweeps.report.answer import WIDTH

WANTED_PERCENTS = (5, 25, 100)  # the nearest judged fractions are drawn
STYLES = {"train/loss": (":", "training, running mean"), "val/loss": ("-", "validation")}  # metric -> line


class Curve(NamedTuple):
    """Mean over replicates of one metric after each evaluated epoch; `losses` has the epochs as index."""

    percent: int
    init: Init
    metric: str
    losses: "pd.Series[float]"


def read_curves(store: Store, pair: Comparison) -> list[Curve]:
    """Read the curves at the three fractions: two calls per cell, each some milliseconds on sqlite."""
    nearest = {min(pair.percents, key=lambda percent: abs(log(percent / wanted))) for wanted in WANTED_PERCENTS}
    curves = []
    for percent, init, metric in itertools.product(sorted(nearest), ("random", pair.init), STYLES):
        cells = [row for row in pair.rows if row.cell.percent == percent and row.cell.init == init]
        runs = [row.run_id for row in cells if row.cell.replicate in pair.replicates]
        points = [(point.step, point.value) for run in runs for point in store.client.get_metric_history(run, metric)]
        losses = pd.DataFrame(points, columns=["epoch", "loss"]).groupby("epoch")["loss"].mean()
        curves.append(Curve(percent, init, metric, losses))
    return curves


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """Draw a panel per fraction, on a log axis."""
    percents = list(dict.fromkeys(curve.percent for curve in curves))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    for i, percent in enumerate(percents):
        axes = figure.add_subplot(1, len(percents), i + 1, title=f"{percent} % of the images", xlabel="epoch")
        for _, init, metric, losses in (curve for curve in curves if curve.percent == percent):
            line, label = STYLES[metric]
            axes.plot(losses.index, losses, line, color=TRAITS[init].colour, label=f"{init}, {label}")
        log_losses(axes, "" if i else "loss (nats)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def log_losses(axes: Axes, label: str) -> None:
    """Scale the y axis by the log of the loss, with plain numbers as ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
