"""The answer in one picture: loss differences that show where pretraining helps, and the verdicts; and the controls."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.transforms import Bbox

from sweeps.analysis.claims import CLAIMS
from sweeps.analysis.comparison import LOSS_MARGIN, Comparison, in_percent
from sweeps.grid import TRAITS, traits
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

WIDTH = 8.5  # inches: at 100 dpi the width of a README
PER_ROW, NARROW_PER_ROW = 3, 5  # panels; narrow ones have a single fraction
PRETRAINED, RANDOM, NEITHER = TRAITS["pretrained"].colour, TRAITS["random"].colour, "#777777"
# Distinguishable by the colour-blind (Okabe & Ito 2008, darkened for white text); background and text.
VERDICT_COLOURS = {
    "holds": ("#00795c", "white"),
    "does not hold": ("#9c3f73", "white"),
    "does not arise": ("#9bd3f2", "black"),
    "cannot be told": ("#e0e0e0", "black"),
}
NO_VERDICT = "no verdict yet"
MARKERS = {Score.VAL_LOSS: ("o", "validation"), Score.TEST_LOSS: ("s", "test"), Score.HELDOUT_LOSS: ("o", "held-out")}
APART = Score.VAL_LOSS, Score.TEST_LOSS
Panel = tuple[str, Comparison, tuple[Score, ...]]  # its title, what it compares, and by which losses


def answer_figure(sweeps: Sequence[LoggedSweep]) -> Figure:
    """Draw loss differences of sweeps with replicates, with simultaneous 95 % intervals, above their verdicts."""
    is_single = len(sweeps) == 1
    panels: list[Panel] = [(sweep.run_id[:8], sweep.pair, APART) for sweep in sweeps]
    if is_single:  # a panel each for validation and test
        panels = [(f"{MARKERS[score][1]} images", sweeps[0].pair, (score,)) for score in APART]
    sides, below = ("pretraining helps", "pretraining hurts"), 0.27 * (len(CLAIMS) + (not is_single))
    figure, places = _differences_figure(panels, "pretrained's", sides, below)
    _draw_verdicts(figure.add_subplot(places[-1, :]), sweeps)
    return figure


def controls_figure(sweep: LoggedSweep) -> Figure | None:
    """Draw the loss difference of each init that trains all layers, in a panel of its own; None without controls."""
    inits = [init for init in sweep.inits if init != "random" and traits(init).n_trainings]
    inits.sort(key=lambda init: init != "pretrained")
    panels: list[Panel] = [(init, pair, (pair.loss,)) for init in inits if (pair := sweep.comparison(init)).n]
    return _differences_figure(panels, "the init's", ("it helps", "it hurts"))[0] if len(panels) > 1 else None


def _differences_figure(
    panels: Sequence[Panel], own: str, sides: tuple[str, str], below: float = 0.0
) -> tuple[Figure, GridSpec]:
    """Draw the panels in rows, with an empty row of `below` inches under them. sides: words above and below 0."""
    are_narrow = all(len(pair.percents) == 1 for _, pair, _ in panels)
    n_columns = min(NARROW_PER_ROW if are_narrow else PER_ROW, len(panels))
    heights = [2.9] * -(-len(panels) // n_columns) + [below] * bool(below)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    places = figure.add_gridspec(len(heights), n_columns, height_ratios=heights)
    for i, (title, pair, scores) in enumerate(panels):
        axes = figure.add_subplot(places[divmod(i, n_columns)], sharey=figure.axes[0] if i else None)
        axes.set_title(title, fontsize=10)
        _draw_differences(axes, pair, scores)
        axes.set_ylabel("" if i % n_columns else f"random's loss against\n{own} (%)")
        if n_columns > PER_ROW:
            axes.set_xlabel("% of the images")
            axes.tick_params(labelleft=i % n_columns == 0)
    _write_sides(figure.axes, *sides)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return figure, places


def log_percents(axes: Axes, percents: Sequence[int]) -> None:
    """Scale the x axis by the log of the fraction, with a tick at each."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(percents, [str(percent) for percent in percents])
    axes.set_xlim(percents[0] / 1.25, percents[-1] * 1.25)
    axes.set_xlabel("% of the target's training images", fontsize=9)


def _draw_differences(axes: Axes, pair: Comparison, scores: Sequence[Score]) -> None:
    limits = in_percent(np.array([-LOSS_MARGIN, LOSS_MARGIN]))
    axes.axhspan(*limits, color="#eeeeee", linewidth=0, label=f"within {limits[1]:.0f} %: hardly matters")
    axes.axhline(0, color="black", linewidth=0.8)
    for k, score in enumerate(scores):
        d, (marker, label) = pair.difference(score), MARKERS[score]
        if d.is_known:
            at = d.percents * 1.06 ** (2 * k - len(scores) + 1)  # apart, so that scores do not overlap
            mean, low, high = pair.intervals(score) or (d.mean, *np.full((2, len(at)), np.nan))
            colours = np.select([low > 0, high < 0], [PRETRAINED, RANDOM], NEITHER)
            of_score = f"mean, {label}" if len(scores) > 1 else "mean"
            axes.scatter(at, in_percent(mean), c=colours, marker=marker, zorder=3, label=of_score)
            of_first = ("", "") if k else ("95 % interval", "replicate")
            axes.vlines(at, in_percent(low), in_percent(high), color=colours, linewidth=2, label=of_first[0])
            dots = axes.plot(1.04 * at, in_percent(d.d.T), ".", color="black", alpha=0.35, markersize=5, mew=0)
            dots[0].set_label(of_first[1])
    log_percents(axes, pair.percents)


def _write_sides(panels: Sequence[Axes], above: str, below: str) -> None:
    """Widen the shared y axis so that the words on its sides do not cover dots, and write them."""
    low, high = panels[0].get_ylim()
    margin = 0.13 * (max(high, 15) - min(low, -15))
    panels[0].set_ylim(min(low, -15) - margin, max(high, 15) + margin)
    for axes in panels:
        write = partial(axes.text, 0.97, transform=axes.transAxes, ha="right", weight="bold", fontsize=9)
        write(0.97, f"▲ {above}", color=PRETRAINED, va="top")
        write(0.03, f"▼ {below}", color=RANDOM, va="bottom")


def _draw_verdicts(axes: Axes, sweeps: Sequence[LoggedSweep]) -> None:
    """Draw a line per claim: its verdict on each sweep, and the effect if there is only one."""
    axes.axis("off")
    texts, n = [[text] for text in CLAIMS.values()], len(sweeps)
    for sweep in sweeps:
        for line, verdict in zip(texts, sweep.verdicts.values(), strict=True):
            line.append(verdict.verdict if sweep.is_complete else NO_VERDICT)
            if n == 1:
                line.append(verdict.effect_text if sweep.is_complete else "")
    widths = [0.44, 0.16, 0.40] if n == 1 else [0.44, *[0.56 / n] * n]
    heads = None if n == 1 else ["", *(sweep.run_id[:8] for sweep in sweeps)]
    table = axes.table(texts, colLabels=heads, colWidths=widths, bbox=Bbox.unit())
    table.auto_set_font_size(False)
    for (_, column), cell in table.get_celld().items():
        background, colour = VERDICT_COLOURS.get(cell.get_text().get_text(), ("white", "black"))
        cell.set(facecolor=background, edgecolor="white", fontsize=8.5 if n < 5 else 7)
        cell.set_text_props(color=colour, ha="center" if column else "left")
        cell.PAD = 0.01
