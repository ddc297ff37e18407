"""Figures of a report: scores against the fraction, their differences, and what explains them."""

from collections.abc import Iterable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.analysis.comparison import Comparison
from sweeps.grid import TRAITS
from sweeps.report.findings import Findings, Table, beside
from sweeps.results.figures import PANELS, label_axes, panel_row, scores_panel
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score


def report_figures(sweep: LoggedSweep, findings: Findings) -> dict[str, tuple[Figure, str]]:
    """Map name to figure and caption. Empty if no replicate of pretrained and random is complete."""
    pair, rows = sweep.pair, sweep.rows
    if not pair.n:
        return {}

    def both(*scores: Score) -> Figure:
        return panel_row(*(partial(_draw_pair, pair=pair, score=score) for score in scores))

    figures = {
        "losses": (
            both(Score.TRAIN_LOSS, Score.VAL_LOSS),
            f"Training and validation loss at the final epoch: mean and range over {pair.n} replicates.",
        ),
        "differences": (
            panel_row(*(partial(_draw_difference, pair=pair, score=score) for score in PANELS)),
            "Random minus pretrained, losses as log ratios, with simultaneous 95 % intervals: "
            "a loss above 0 means that pretraining helps.",
        ),
    }
    if findings["effective_data"]:
        figures["effective_data"] = (
            panel_row(partial(_draw_effective_data, pair=pair)),
            "Effective data: how many times the data random weights need to reach the pretrained loss, with 95 % "
            "limits; triangles are bounds.",
        )
    best = both(Score.VAL_LOSS, Score.BEST_VAL_LOSS)
    figures["best_epoch"] = best, "Validation loss at the final and at the best epoch."
    if pair.difference(Score.SCALED_VAL_LOSS).is_known:
        figures["calibration"] = (
            both(Score.VAL_ECE, Score.VAL_TEMPERATURE, Score.SCALED_VAL_LOSS),
            "Calibration on validation: expected calibration error (15 bins), temperature (above 1: over-confident), "
            "and cross-entropy after temperature scaling (cross-fitted in two folds).",
        )
    if len({row.cell.init for row in rows if row.status == "finished"}) > 2:
        every = panel_row(*(scores_panel(rows, score) for score in PANELS))
        figures["inits"] = (every, "Every init: mean over replicates and range.")
    if findings["compared_with"]:
        figures["sweeps"] = (
            panel_row(partial(_draw_beside, sweeps=[beside(sweep), *findings["compared_with"]]), width=9),
            "Sweeps side by side: final loss, random minus pretrained as a log ratio, with its interval.",
        )
    return figures


def _draw_pair(axes: Axes, pair: Comparison, score: Score) -> None:
    for init in (pair.init, "random"):
        values, colour = score.scale * pair.scores(init, score), TRAITS[init].colour
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(pair.percents, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(pair.percents, values.mean(axis=0), marker="o", markersize=3, color=colour, label=init)
    label_axes(axes, score.axis)


def _draw_difference(axes: Axes, pair: Comparison, score: Score) -> None:
    d, colour, scale = pair.difference(score), TRAITS[pair.init].colour, score.scale
    axes.axhline(0, color="black", linewidth=0.8)
    if band := d.intervals:
        axes.fill_between(d.percents, scale * band.low, scale * band.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(d.percents, scale * d.d.T, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(d.percents, scale * d.mean, marker="o", markersize=3, color=colour, label="random - pretrained")
    label_axes(axes, f"{score.label}: {'log ratio' if score.is_loss else 'difference in points'}")


def _draw_effective_data(axes: Axes, pair: Comparison) -> None:
    data, percents, colour = (
        pair.curves.effective_data(len(pair.percents)),
        np.array(pair.percents, float),
        TRAITS[pair.init].colour,
    )
    top = max(2.0, 1.3 * float(data.multiplier.max()))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.vlines(percents, np.clip(data.low, 0, top), np.clip(data.high, 0, top), color=colour, alpha=0.5)
    for marker, where in (("o", ~data.at_least & ~data.at_most), ("^", data.at_least), ("v", data.at_most)):
        axes.plot(percents[where], data.multiplier[where], marker, color=colour, markersize=5)
    axes.set_ylim(0, top)
    _log_percents(axes, pair.percents)
    label_axes(axes, "multiplier D_E / D_F", legend=False)


def _draw_beside(axes: Axes, sweeps: Table) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    for i, sweep in enumerate(sweeps):
        percents = [point["percent"] * 1.02**i for point in sweep["points"]]  # shifted, so that sweeps do not overlap
        mean, low, high = ([point[key] for point in sweep["points"]] for key in ("mean", "low", "high"))
        axes.vlines(percents, low, high, color=f"C{i}", alpha=0.5)
        axes.plot(percents, mean, "o-", markersize=3, color=f"C{i}", label=f"{sweep['run_id'][:8]}: {sweep['kind']}")
    _log_percents(axes, sorted({point["percent"] for sweep in sweeps for point in sweep["points"]}))
    label_axes(axes, "log ratio of the final loss", legend=False)
    axes.figure.legend(loc="outside lower center", frameon=False, fontsize=8)


def _log_percents(axes: Axes, percents: Iterable[int]) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(list(percents), [str(percent) for percent in percents])
