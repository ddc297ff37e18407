"""Which replicates and fractions count, and in which units they are compared."""

from collections.abc import Callable

import numpy as np
import pytest
from constructed import PERCENTS, compared, rows

from sweeps.grid import Cell
from sweeps.rows import Row, Score


def without(table: list[Row], is_missing: Callable[[Cell], bool]) -> list[Row]:
    return [Row(row.cell, row.n_train, "", "failed", {}) if is_missing(row.cell) else row for row in table]


def test_everything_counts_without_a_plan() -> None:
    pair = compared(rows(8, {}))
    assert (pair.percents, pair.replicates, pair.incomplete, pair.n_missing) == (PERCENTS, tuple(range(8)), (), 0)
    assert pair.values["random", Score.VAL_LOSS].shape == (8, 5)


def test_the_plan_decides_what_is_compared() -> None:
    pair = compared(rows(8, {}), judged=(5, 100), n_replicates=6)
    assert (pair.percents, pair.replicates, pair.n_missing) == ((5, 100), tuple(range(6)), 0)
    more = compared(rows(8, {}), judged=(5, 75, 100), n_replicates=10, is_complete=False)
    assert (more.n, more.n_missing) == (0, 28)  # 75 % of both inits, and two replicates of the rest
    assert "28" in more.no_verdict


def test_a_missing_cell_costs_its_replicate() -> None:
    pair = compared(without(rows(8, {}), lambda cell: cell == Cell(100, "random", 3)))
    assert (pair.percents, pair.n, pair.incomplete, pair.n_missing) == (PERCENTS, 7, (3,), 1)


def test_losses_are_compared_as_log_ratios_and_accuracies_plainly() -> None:
    pair = compared(rows(8, {"final/val_loss": 0.8, "final/val_accuracy": -0.01}))
    assert pair.difference(Score.VAL_LOSS).mean[0] == pytest.approx(np.log(2), abs=0.01)
    assert pair.difference(Score.VAL_ACCURACY).mean[0] == pytest.approx(-0.01, abs=0.001)


def test_half_of_another_difference_is_subtracted() -> None:
    gains = {"test/loss": -0.2, "test/best_loss": -0.1}
    score, of = Score.TEST_BEST_LOSS, Score.TEST_LOSS
    contrast = compared(rows(8, gains), image_variances={(score, of): np.full(5, 0.1)}).contrast(score, of)
    assert contrast.mean[0] == pytest.approx(np.log(0.7 / 0.8) - np.log(0.6 / 0.8) / 2, abs=0.005)
    assert contrast.image_variance == pytest.approx(np.full(5, 0.1))


def test_test_images_alone_are_judged_where_validation_chose() -> None:
    assert compared(rows(4, {}), is_tuned=True).loss is Score.TEST_LOSS
    assert compared(rows(4, {})).accuracy is Score.HELDOUT_ACCURACY
