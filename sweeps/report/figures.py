"""Figures of a report: scores against the fraction, their differences, and what explains them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.analysis.comparison import Comparison
from sweeps.analysis.statistics import MIN_REPLICATES, simultaneous_band
from sweeps.grid import TRAITS
from sweeps.report.findings import Findings
from sweeps.results.figures import PANELS, Draw, label_axes, panel_row, scores_panel
from sweeps.rows import BEST_VAL_LOSS, SCALED_VAL_LOSS, TRAIN_LOSS, VAL_ECE, VAL_LOSS, VAL_TEMPERATURE, Score


def report_figures(findings: Findings) -> dict[str, tuple[Figure, str]]:
    """Map name to figure and caption. Empty if no replicate of pretrained and random is complete."""
    pair, rows = findings.pair, findings.sweep.rows
    if not pair.n:
        return {}
    spread = "simultaneous 95 % band" if pair.n >= MIN_REPLICATES else "range over replicates"
    interval = "simultaneous 95 % band" if pair.n >= MIN_REPLICATES else "95 % t-intervals"
    figures = {
        "losses": (
            panel_row(*(_pair_panel(pair, score) for score in (TRAIN_LOSS, VAL_LOSS))),
            f"Training and validation loss at the final epoch: mean over {pair.n} replicates, {spread}.",
        ),
        "differences": (
            panel_row(*(_difference_panel(pair, score) for score in PANELS.values())),
            f"Random minus pretrained, paired, with {interval}: a loss above 0 means that pretraining helps. Shaded: "
            "fractions at which the band of the validation loss contains 0. Dotted: crossover of its mean.",
        ),
        "effective_data": (
            panel_row(lambda axes: _draw_effective_data(axes, pair)),
            "Effective data: how many times the data random weights need to reach the pretrained loss, with 95 % "
            "bootstrap intervals; triangles are bounds.",
        ),
        "best_epoch": (
            panel_row(*(_pair_panel(pair, score) for score in (VAL_LOSS, BEST_VAL_LOSS))),
            "Validation loss at the final and at the best epoch.",
        ),
    }
    if pair.difference(SCALED_VAL_LOSS).is_known:
        figures["calibration"] = (
            panel_row(*(_pair_panel(pair, score) for score in (VAL_ECE, VAL_TEMPERATURE, SCALED_VAL_LOSS))),
            "Calibration on validation: expected calibration error (15 bins), temperature (above 1: over-confident), "
            "and cross-entropy after temperature scaling (cross-fitted in two folds).",
        )
    if len({row.cell.init for row in rows if row.status == "finished"}) > 2:
        figures["inits"] = (
            panel_row(*(scores_panel(rows, score) for score in PANELS.values())),
            "Every init: mean over replicates and range.",
        )
    if findings.beside:
        figures["sweeps"] = (
            panel_row(lambda axes: _draw_beside(axes, findings), width=9),
            "Sweeps side by side: validation loss, random minus pretrained, with its interval.",
        )
    return figures


def _pair_panel(pair: Comparison, score: Score) -> Draw:
    return lambda axes: _draw_pair(axes, pair, score)


def _difference_panel(pair: Comparison, score: Score) -> Draw:
    return lambda axes: _draw_difference(axes, pair, score)


def _draw_pair(axes: Axes, pair: Comparison, score: Score) -> None:
    for init in (pair.init, pair.baseline):
        values = score.scale * pair.scores(init, score)
        low, high = values.min(axis=0), values.max(axis=0)
        if pair.n >= MIN_REPLICATES:
            band = simultaneous_band(values)
            low, high = band.low, band.high
        axes.fill_between(pair.percents, low, high, color=TRAITS[init].colour, alpha=0.2, linewidth=0)
        axes.plot(pair.percents, values.mean(axis=0), marker="o", markersize=3, color=TRAITS[init].colour, label=init)
    label_axes(axes, score.axis)


def _draw_difference(axes: Axes, pair: Comparison, score: Score) -> None:
    d, colour, scale = pair.difference(score), TRAITS[pair.init].colour, score.scale
    axes.axhline(0, color="black", linewidth=0.8)
    if (band := d.intervals) is not None:
        axes.fill_between(pair.percents, scale * band.low, scale * band.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(pair.percents, scale * d.d.T, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(
        pair.percents, scale * d.d.mean(axis=0), marker="o", markersize=3, color=colour, label="random - pretrained"
    )
    if score == VAL_LOSS:
        cross = d.crossover
        if band is not None:
            contains = (band.low <= 0) & (band.high >= 0)
            axes.plot(d.percents[contains], np.zeros(contains.sum()), "s", color="black", alpha=0.15, markersize=9)
        if cross.percent is not None:
            axes.axvline(cross.percent, color="black", linestyle=":", linewidth=1)
    label_axes(axes, f"difference of {score.axis}".replace("%", "points"))


def _draw_effective_data(axes: Axes, pair: Comparison) -> None:
    percents = np.array(pair.percents, float)
    data = pair.effective_data
    top = max(2.0, 1.3 * float(data.multiplier.max()))
    axes.axhline(1, color="black", linewidth=0.8)
    low, high = np.clip(data.low, 0, top), np.clip(data.high, 0, top)
    axes.vlines(percents, low, high, color=TRAITS[pair.init].colour, alpha=0.5)
    for marker, where in (("o", ~data.at_least & ~data.at_most), ("^", data.at_least), ("v", data.at_most)):
        axes.plot(percents[where], data.multiplier[where], marker, color=TRAITS[pair.init].colour, markersize=5)
    axes.set_ylim(0, top)
    axes.set_xscale("log")
    axes.set_xticks(percents, [f"{percent:.0f}" for percent in percents])
    axes.minorticks_off()
    axes.set_xlabel("percent of the target's training images")
    axes.set_ylabel("multiplier D_E / D_F")
    axes.grid(alpha=0.3)


def _draw_beside(axes: Axes, findings: Findings) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    for i, sweep in enumerate(findings.beside):
        shift = 1.02**i  # so that sweeps do not overlap
        for point in sweep.points:
            if point.low is not None and point.high is not None:
                axes.vlines(point.percent * shift, point.low, point.high, color=f"C{i}", alpha=0.5)
        percents, means = [point.percent * shift for point in sweep.points], [point.mean for point in sweep.points]
        axes.plot(percents, means, "o-", markersize=3, color=f"C{i}", label=f"{sweep.run_id[:8]}: {sweep.kind}")
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({point.percent for sweep in findings.beside for point in sweep.points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    label_axes(axes, "difference of validation loss (nats)", legend=False)
    axes.figure.legend(loc="outside lower center", frameon=False, fontsize=8)
