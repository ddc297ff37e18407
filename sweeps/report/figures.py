"""Figures of a report: the answer first, then what explains it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from sweeps.analysis.comparison import LOSS_MARGIN, Comparison
from sweeps.grid import REPORTED
from sweeps.report.answer import NEITHER, PRETRAINED, RANDOM, WIDTH, answer_figure, in_percent, log_percents
from sweeps.report.epochs import Curve, curves_figure, log_losses
from sweeps.report.findings import Table, effective_data
from sweeps.report.tables import multiplier_text
from sweeps.results.figures import PANELS, panel_row, scores_panel
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

MOST_REPLICATES = 24  # up to which half-widths are drawn, or twice those of the sweep
CAPTIONS = {
    "answer": "Random's final loss against pretrained's, with simultaneous 95 % intervals (blue: pretrained is shown "
    "to be better, orange: random is, grey: open), and the verdicts.",
    "sweeps": "Sweeps side by side, by the start of their run ids.",
    "losses": "The original report's two graphs: mean and range over the finished replicates at the final epoch.",
    "epochs": "Loss against epoch: mean over replicates. Training losses are means over an epoch's batches.",
    "effective_data": "Effective data: an arrow leads from the pretrained loss to the amount of data with which random "
    "weights reach it. Numbers are multiples of the data, with 95 % limits.",
    "half_widths": "Would more replicates tell? Half-width of the simultaneous 95 % interval of the final loss against "
    "the number of replicates. Curves level off where the judged images, of which there are only so many, limit it.",
    "inits": "Every init: mean and range.",
}


def report_figures(
    sweep: LoggedSweep, others: Sequence[LoggedSweep] = (), curves: Sequence[Curve] = ()
) -> dict[str, Figure]:
    """Map names in `CAPTIONS` to figures; empty if no cell is finished. curves: from `read_curves`."""
    pair, figures = sweep.pair, dict[str, Figure]()
    finished = [row for row in sweep.rows if row.status == "finished"]
    reported = [row for row in finished if row.cell.init in REPORTED]
    named = {each.run_id[:8]: each.pair for each in (sweep, *others) if each.pair.n}
    if pair.n:
        figures["answer"] = answer_figure({sweep.name: pair})
    if len(named) > 1:
        figures["sweeps"] = answer_figure(named)
    if reported:
        panels = [scores_panel(reported, score) for score in (Score.TRAIN_LOSS, Score.VAL_LOSS)]
        figures["losses"] = panel_row(*panels, width=WIDTH)
    if curves:
        figures["epochs"] = curves_figure(curves)
    if table := effective_data(pair):
        figures["effective_data"] = effective_figure(pair, table)
    if pair.n > 1 and pair.difference(pair.loss).is_known:
        figures["half_widths"] = half_widths_figure(pair)
    if len(reported) < len(finished):
        figures["inits"] = panel_row(*(scores_panel(finished, score) for score in PANELS))
    return figures


def effective_figure(pair: Comparison, table: Table) -> Figure:
    """Draw loss against fraction, with arrows from the pretrained losses to the random curve; table: effective data."""
    random, own = (np.exp(np.log(pair.scores(init, pair.loss)).mean(axis=0)) for init in ("random", pair.init))
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
    axes.legend(frameon=False, fontsize=9)
    return figure


def half_widths_figure(pair: Comparison) -> Figure:
    """Draw the half-width of the simultaneous interval against N at the observed variances, a line per fraction."""
    e, margin = pair.difference(pair.loss).estimate, in_percent(LOSS_MARGIN)
    n = range(2, max(MOST_REPLICATES, 2 * pair.n) + 1)
    estimates = [dataclasses.replace(e, n=k, df=e.df / (e.n - 1) * (k - 1)) for k in n]
    halves = in_percent(np.array([estimate.intervals().high - e.mean for estimate in estimates]))  # [n, fractions]
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot(xlabel="replicates", ylabel="half-width (% of the loss)", ylim=(0, 3 * margin))
    shades = colormaps["viridis"](np.linspace(0.8, 0, len(pair.percents)))  # legible to the colour-blind
    for percent, half, shade in zip(pair.percents, halves.T, shades, strict=True):
        axes.plot(n, half, color=shade, label=f"{percent} %")
    axes.axhline(margin, color="black", linestyle="--", linewidth=1)
    axes.text(n[-1], margin, "margin", ha="right", va="bottom", fontsize=9)
    axes.axvline(pair.n, color=NEITHER, linestyle=":")
    axes.text(pair.n, 2.9 * margin, " this sweep", va="top", fontsize=9, color=NEITHER)
    axes.grid(alpha=0.3)
    axes.legend(title="fraction", frameon=False, fontsize=9)
    return figure
