"""Figures from the rows of a sweep: scores against the fraction, their differences, and what explains them."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.comparison import ACCURACY, BEST, SCALED, TRAIN, VAL, Comparison
from sweeps.findings import Findings
from sweeps.grid import INITS, Init
from sweeps.statistics import MIN_REPLICATES, simultaneous_band
from sweeps.table import Row, by_replicate, finished_percents

COLOURS: dict[Init, str] = {
    "pretrained": "#1b6ca8",
    "random": "#d1603d",
    "frozen": "#5b8c5a",
    "lp-ft": "#8e5ea2",
    "selffer": "#b8860b",
    "shrink-perturb": "#3aa6a6",
    "matched": "#7f7f7f",
}
PANELS = {
    "training_loss": (TRAIN, "training loss (nats)", 1.0),
    "validation_loss": (VAL, "validation loss (nats)", 1.0),
    "validation_accuracy": (ACCURACY, "validation accuracy (%)", 100.0),
}


def sweep_figures(rows: Sequence[Row], title: str) -> dict[str, Figure]:
    """File name -> figure: one a score, and `overview.png` with all three. Empty if nothing is finished."""
    if not finished_percents(rows):
        return {}
    figures = {}
    for name, (score, label, unit) in PANELS.items():
        figure = _row(1, _panel(rows, score, label, unit))
        figure.suptitle(title, fontsize=10)
        figures[f"figures/{name}.png"] = figure
    figure = _row(len(PANELS), *(_panel(rows, *panel) for panel in PANELS.values()))
    figure.suptitle(title, fontsize=10)
    return figures | {"figures/overview.png": figure}


def report_figures(findings: Findings) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and its caption. Empty if no replicate of pretrained and random is complete."""
    pair, rows = findings.pair, findings.sweep.rows
    if not pair.n:
        return {}
    spread = "simultaneous 95 % band" if pair.n >= MIN_REPLICATES else "range over replicates"
    interval = "simultaneous 95 % band" if pair.n >= MIN_REPLICATES else "95 % t-intervals"
    figures = {
        "losses": (
            _row(2, *(_pair_panel(pair, *PANELS[name]) for name in ("training_loss", "validation_loss"))),
            f"Training and validation loss at the final epoch: mean over {pair.n} replicates, {spread}.",
        ),
        "differences": (
            _row(3, *(_difference_panel(pair, *panel) for panel in PANELS.values())),
            f"Random minus pretrained, paired, with {interval}: a loss above 0 means that pretraining helps. Shaded: "
            "fractions at which the band of the validation loss contains 0. Dotted: crossover of its mean.",
        ),
        "effective_data": (
            _row(1, lambda axes: _draw_effective_data(axes, pair)),
            "Effective data: how many times the data random weights need for the pretrained loss, with 95 % bootstrap "
            "intervals; triangles are bounds.",
        ),
        "best_epoch": (
            _row(2, *(_pair_panel(pair, s, f"{n} (nats)", 1.0) for s, n in ((VAL, "final"), (BEST, "best epoch")))),
            "Validation loss at the final epoch and at the best.",
        ),
    }
    if pair.difference(SCALED).is_known:
        calibration = (
            ("final/val_ece", "expected calibration error", 1.0),
            ("final/val_temperature", "temperature", 1.0),
            (SCALED, "loss after scaling (nats)", 1.0),
        )
        figures["calibration"] = (
            _row(3, *(_pair_panel(pair, *panel) for panel in calibration)),
            "Calibration on validation: expected calibration error (15 bins), temperature (above 1: over-confident), "
            "and cross-entropy after temperature scaling (cross-fitted in two folds).",
        )
    if len({row.cell.init for row in rows if row.status == "finished"}) > 2:
        figures["inits"] = (
            _row(3, *(_panel(rows, *panel) for panel in PANELS.values())),
            "Every init: mean over replicates and range.",
        )
    if findings.beside:
        figures["sweeps"] = (
            _row(1, lambda axes: _draw_beside(axes, findings), width=9),
            "Sweeps side by side: validation loss, random minus pretrained, with its interval.",
        )
    return figures


Draw = Callable[[Axes], None]


def _row(n: int, *panels: Draw, width: float | None = None) -> Figure:
    figure = Figure(figsize=(width or 1.2 + 4 * n, 4), layout="constrained")  # no pyplot: nothing has to be closed
    for one, draw in zip(figure.subplots(1, n, squeeze=False)[0], panels, strict=True):
        draw(one)
    return figure


def _panel(rows: Sequence[Row], score: str, label: str, unit: float) -> Draw:
    return lambda axes: _draw(axes, rows, score, label, unit)


def _pair_panel(pair: Comparison, score: str, label: str, unit: float) -> Draw:
    return lambda axes: _draw_pair(axes, pair, score, label, unit)


def _difference_panel(pair: Comparison, score: str, label: str, unit: float) -> Draw:
    return lambda axes: _draw_difference(axes, pair, score, label, unit)


def _draw(axes: Axes, rows: Sequence[Row], score: str, label: str, unit: float) -> None:
    """Mean over whatever replicates there are, and their range."""
    for init in INITS:
        percents = sorted({row.cell.percent for row in rows if row.status == "finished" and row.cell.init == init})
        if percents:
            values = unit * by_replicate(rows, init, score, percents)
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(percents, low, high, color=COLOURS[init], alpha=0.2, linewidth=0)
            mean = np.nanmean(values, axis=0)
            axes.plot(percents, mean, marker="o", markersize=3, color=COLOURS[init], label=init)
    _label(axes, label)


def _draw_pair(axes: Axes, pair: Comparison, score: str, label: str, unit: float) -> None:
    for init in (pair.init, pair.baseline):
        values = unit * pair.scores(init, score)
        low, high = values.min(axis=0), values.max(axis=0)
        if pair.n >= MIN_REPLICATES:
            band = simultaneous_band(values)
            low, high = band.low, band.high
        axes.fill_between(pair.percents, low, high, color=COLOURS[init], alpha=0.2, linewidth=0)
        axes.plot(pair.percents, values.mean(axis=0), marker="o", markersize=3, color=COLOURS[init], label=init)
    _label(axes, label)


def _draw_difference(axes: Axes, pair: Comparison, score: str, label: str, unit: float) -> None:
    d, colour = pair.difference(score), COLOURS[pair.init]
    axes.axhline(0, color="black", linewidth=0.8)
    if (band := d.intervals) is not None:
        axes.fill_between(pair.percents, unit * band.low, unit * band.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(pair.percents, unit * d.d.T, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(
        pair.percents, unit * d.d.mean(axis=0), marker="o", markersize=3, color=colour, label="random - pretrained"
    )
    if score == VAL:
        cross = d.crossover
        if band is not None:
            contains = (band.low <= 0) & (band.high >= 0)
            axes.plot(d.percents[contains], np.zeros(contains.sum()), "s", color="black", alpha=0.15, markersize=9)
        if cross.percent is not None:
            axes.axvline(cross.percent, color="black", linestyle=":", linewidth=1)
    _label(axes, f"difference of {label}".replace("%", "points"))


def _draw_effective_data(axes: Axes, pair: Comparison) -> None:
    percents = np.array(pair.percents, float)
    data = pair.effective_data
    top = max(2.0, 1.3 * float(data.multiplier.max()))
    axes.axhline(1, color="black", linewidth=0.8)
    low, high = np.clip(data.low, 0, top), np.clip(data.high, 0, top)
    axes.vlines(percents, low, high, color=COLOURS[pair.init], alpha=0.5)
    for marker, where in (("o", ~data.at_least & ~data.at_most), ("^", data.at_least), ("v", data.at_most)):
        axes.plot(percents[where], data.multiplier[where], marker, color=COLOURS[pair.init], markersize=5)
    axes.set_ylim(0, top)
    axes.set_xscale("log")
    axes.set_xticks(percents, [f"{percent:.0f}" for percent in percents])
    axes.minorticks_off()
    axes.set_xlabel("percent of the target's training images")
    axes.set_ylabel("multiplier D_E / D_F")
    axes.grid(alpha=0.3)


def _draw_beside(axes: Axes, findings: Findings) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    for i, one in enumerate(findings.beside):
        shift = 1.02**i  # not one upon the other
        for point in one.points:
            if point.low is not None and point.high is not None:
                axes.vlines(point.percent * shift, point.low, point.high, color=f"C{i}", alpha=0.5)
        percents, means = [point.percent * shift for point in one.points], [point.mean for point in one.points]
        axes.plot(percents, means, "o-", markersize=3, color=f"C{i}", label=f"{one.run_id[:8]}: {one.kind}")
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({point.percent for one in findings.beside for point in one.points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    _label(axes, "difference of validation loss (nats)", legend=False)
    axes.figure.legend(loc="outside lower center", frameon=False, fontsize=8)


def _label(axes: Axes, label: str, *, legend: bool = True) -> None:
    axes.set_xlabel("percent of the target's training images")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False, fontsize=8)
