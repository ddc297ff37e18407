"""Figures of a report on constructed sweeps: what is drawn where, and where it is read from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from constructed import PERCENTS, compared, rows, sweep
from matplotlib.figure import Figure

from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from sweeps.analysis.claims import CLAIMS
from sweeps.analysis.comparison import Comparison
from sweeps.grid import Cell
from sweeps.report.answer import VERDICT_COLOURS, answer_figure, controls_figure
from sweeps.report.figures import curves_figure, effective_figure, read_curves
from sweeps.report.findings import effective_data
from sweeps.rows import Row, Score, from_csv, to_csv

GAINS = {"heldout/loss": 0.02, "final/val_loss": 0.02, "test/loss": 0.02}


@pytest.fixture
def pair() -> Comparison:
    return compared(rows(6, GAINS, noise=0.004))


def texts(figure: Figure) -> list[str]:
    return [cell.get_text().get_text() for cell in figure.axes[-1].tables[0].get_celld().values()]


def test_the_answer_has_a_panel_for_validation_and_test_and_a_line_per_claim(pair: Comparison) -> None:
    figure = answer_figure([sweep(pair.rows)])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["validation images", "test images"]
    means = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert means[:, 1] == pytest.approx(100 * np.expm1(pair.difference(Score.VAL_LOSS).mean))
    assert set(CLAIMS.values()) <= set(texts(figure))
    assert sum(text in VERDICT_COLOURS for text in texts(figure)) == len(CLAIMS)


def test_several_sweeps_have_a_panel_each_and_one_of_them_no_verdict_yet(pair: Comparison) -> None:
    sweeps = [sweep(pair.rows, run_id=name) for name in ("a", "b", "c", "d")]
    figure = answer_figure([*sweeps[:3], dataclasses.replace(sweeps[3], is_complete=False)])
    assert [axes.get_title() for axes in figure.axes[:4]] == ["a", "b", "c", "d"]
    assert texts(figure).count("no verdict yet") == len(CLAIMS)


def test_controls_have_a_panel_each_beside_pretrained(pair: Comparison) -> None:
    inits = ("pretrained", "random", "frozen", "pretrained@1", "selffer")
    table = rows(6, GAINS, noise=0.004, inits=inits)
    logged = sweep(table)
    figure = controls_figure(logged)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["pretrained", "pretrained@1", "selffer"]
    means = np.asarray(figure.axes[1].collections[0].get_offsets())
    expected = logged.comparison("pretrained@1").difference(Score.HELDOUT_LOSS).mean
    assert means[:, 1] == pytest.approx(100 * np.expm1(expected))
    assert controls_figure(sweep(pair.rows)) is None


def test_controls_of_a_single_fraction_stand_in_one_row() -> None:
    inits = ("pretrained", "random", "pretrained@1", "pretrained@2", "selffer", "matched")
    table = [row for row in rows(6, GAINS, noise=0.004, inits=inits) if row.cell.percent == 100]
    figure = controls_figure(sweep(table))
    assert figure is not None
    bottoms = {axes.get_position().y0 for axes in figure.axes}
    assert (len(figure.axes), len(bottoms)) == (5, 1)


def test_the_answer_is_drawn_from_a_table_alone(pair: Comparison) -> None:
    read = compared(from_csv(to_csv(pair.rows)), judged=PERCENTS, n_replicates=6)
    for score in (Score.TRAIN_LOSS, Score.HELDOUT_LOSS):
        assert read.difference(score).d == pytest.approx(pair.difference(score).d, abs=1e-4)
    assert texts(answer_figure([sweep(read.rows)])) == texts(answer_figure([sweep(pair.rows)]))


def test_an_arrow_leads_to_the_random_curve(pair: Comparison) -> None:
    table = effective_data(pair)
    arrows = [text for text in effective_figure(pair, table).axes[0].texts if not text.get_text()]
    ends = {text.xyann[0]: text.xy[0] for text in arrows}
    assert ends[10] == pytest.approx(table[1]["effective_percent"])
    assert ends[10] > 10


def test_curves_are_means_over_replicates(store: Store, tmp_path: Path) -> None:
    table = []
    for percent in (5, 20, 100):
        for init in ("pretrained", "random"):
            for replicate in range(2):
                run = store.start(TRANSFER, "cell")
                points = [("train/loss", 1.0 / step + replicate, step) for step in (1, 2)]
                store.log(run, metrics=[*points, ("val/loss", 2.0, 1), ("val/loss", 3.0, 2)])
                table.append(Row(Cell(percent, init, replicate), 1, run, "finished", {"final/val_loss": 0.1}))
    curves = read_curves(store, compared(table))
    assert [(percent, init) for percent, init, _ in curves][::2] == [
        (percent, init) for percent in (5, 20, 100) for init in ("random", "pretrained")
    ]
    assert curves[5, "random", "train/loss"].to_dict() == {1: 1.5, 2: 1.0}
    assert curves[5, "random", "val/loss"].to_dict() == {1: 2.0, 2: 3.0}
    figure = curves_figure(curves)
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4]
