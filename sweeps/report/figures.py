"""Figures of a report: the answer first, then what explains it."""

import itertools
from collections.abc import Mapping, Sequence
from math import isnan, log
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fmnist_transfer.store.runs import Store
from sweeps.analysis.comparison import Comparison
from sweeps.grid import REPORTED, TRAITS, Init
from sweeps.report.answer import PRETRAINED, RANDOM, WIDTH, answer_figure, controls_figure, log_percents
from sweeps.report.findings import Table, effective_data
from sweeps.results.figures import scores_figure
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

WANTED_PERCENTS = (5, 25, 100)  # the nearest judged fractions have curves over epochs
STYLES = {"train/loss": (":", "training, running mean"), "val/loss": ("-", "validation")}  # metric -> line
Curves = Mapping[tuple[int, Init, str], "pd.Series[float]"]  # percent, init, metric -> mean over replicates by epoch


def report_figures(
    sweep: LoggedSweep, others: Sequence[LoggedSweep] = (), curves: Curves | None = None
) -> dict[str, Figure]:
    """Map names to figures, in order; empty if no cell is finished. curves: from `read_curves`."""
    pair, figures = sweep.pair, dict[str, Figure]()
    reported = [row for row in sweep.rows if row.status == "finished" and row.cell.init in REPORTED]
    compared = [each for each in (sweep, *others) if each.pair.n]
    if pair.n:
        figures["answer"] = answer_figure([sweep])
    if len(compared) > 1:
        figures["sweeps"] = answer_figure(compared)
    if reported:
        figures["losses"] = scores_figure(reported, (Score.TRAIN_LOSS, Score.VAL_LOSS), WIDTH)
    if curves:
        figures["epochs"] = curves_figure(curves)
    if table := effective_data(pair):
        figures["effective_data"] = effective_figure(pair, table)
    if pair.n and all((percent, init) in sweep.confusions for percent in pair.percents for init in REPORTED):
        figures["classes"] = classes_figure(sweep)
    if controls := controls_figure(sweep):
        figures["controls"] = controls
    return figures


def classes_figure(sweep: LoggedSweep) -> Figure:
    """Draw pretrained minus random held-out accuracy against the fraction, a line per class."""
    percents = sweep.pair.percents
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot(ylabel="pretrained minus random\n(points of held-out accuracy)")
    own, random = (np.array([sweep.confusions[p, init].diagonal() for p in percents]) for init in REPORTED)
    for name, gains in zip(sweep.target_names, 100 * (own - random).T, strict=True):
        axes.plot(percents, gains, "o-", label=name)
    axes.axhline(0, color="black", linewidth=1)
    log_percents(axes, percents)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def read_curves(store: Store, pair: Comparison) -> Curves:
    """Read the curves at three fractions, with two calls per cell, each some milliseconds on sqlite."""
    nearest = {min(pair.percents, key=lambda percent: abs(log(percent / wanted))) for wanted in WANTED_PERCENTS}
    curves = {}
    for percent, init, metric in itertools.product(sorted(nearest), ("random", pair.init), STYLES):
        cells = [row for row in pair.rows if row.cell.percent == percent and row.cell.init == init]
        runs = [row.run_id for row in cells if row.cell.replicate in pair.replicates]
        points = [(point.step, point.value) for run in runs for point in store.client.get_metric_history(run, metric)]
        curves[percent, init, metric] = pd.DataFrame(points, columns=["epoch", "loss"]).groupby("epoch")["loss"].mean()
    return curves


def curves_figure(curves: Curves) -> Figure:
    """Draw loss against epoch, a panel per fraction."""
    percents = list(dict.fromkeys(percent for percent, _, _ in curves))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = dict(zip(percents, figure.subplots(1, len(percents), squeeze=False)[0], strict=True))
    for (percent, init, metric), losses in curves.items():
        line, label = STYLES[metric]
        panels[percent].plot(losses.index, losses, line, color=TRAITS[init].colour, label=f"{init}, {label}")
    for percent, axes in panels.items():
        axes.set(title=f"{percent} % of the images", xlabel="epoch")
        log_losses(axes, "loss (nats)" if percent == percents[0] else "")
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


def effective_figure(pair: Comparison, table: Table) -> Figure:
    """Draw loss against fraction, with arrows from the pretrained losses to the random curve; table: effective data."""
    random, own = (np.exp(np.log(pair.values[init, pair.loss]).mean(axis=0)) for init in ("random", pair.init))
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(pair.percents, random, "o-", color=RANDOM, label="random")
    axes.plot(pair.percents, own, "o", color=PRETRAINED, label=pair.init)
    for percent, loss, line in zip(pair.percents, own, table, strict=True):
        if abs(np.log(line["multiplier"])) > 0.01:
            arrow = {"arrowstyle": "-|>", "color": PRETRAINED, "shrinkA": 3, "shrinkB": 0}
            axes.annotate("", (line["effective_percent"], loss), (percent, loss), arrowprops=arrow)
        text = axes.annotate(multiplier_text(line), (percent, loss), (-6, -3), textcoords="offset points")
        text.set(ha="right", va="top", fontsize=9, color=PRETRAINED)
    log_percents(axes, pair.percents)
    axes.set_xlim(left=pair.percents[0] / 2)
    axes.margins(y=0.12)
    log_losses(axes, f"{pair.loss.label} (nats)")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def multiplier_text(line: Mapping[str, Any]) -> str:
    """`1.30 x [1.10, 1.61]`, of a line of effective data; an unknown limit is `...`."""
    low, high = ("..." if isnan(line[key]) else f"{line[key]:.2f}" for key in ("low", "high"))
    return f"{bound(line)}{line['multiplier']:.2f} x [{low}, {high}]"


def bound(line: Mapping[str, Any]) -> str:
    """Sign of a censored line of effective data."""
    return "≥ " if line["at_least"] else "≤ " if line["at_most"] else ""
