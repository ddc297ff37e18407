"""Which replicates and fractions count."""

import re
from collections.abc import Callable

import pytest
from constructed import PERCENTS, rows

from sweeps.analysis.claims import judge
from sweeps.analysis.comparison import compare
from sweeps.grid import Cell
from sweeps.rows import Row, Score


def without(table: list[Row], is_missing: Callable[[Cell], bool]) -> list[Row]:
    return [Row(row.cell, row.n_train, "", "failed", {}) if is_missing(row.cell) else row for row in table]


def extra(percent: int, replicates: range, inits: tuple[str, ...] = ("pretrained", "random")) -> list[Row]:
    scores = rows(1, {})[0].scores
    return [Row(Cell(percent, init, r), 250 * percent, "id", "finished", scores) for init in inits for r in replicates]


def test_everything_counts_where_everything_is_there() -> None:
    pair = compare(rows(8, {}))
    assert (pair.percents, pair.replicates, pair.left_out, pair.incomplete) == (PERCENTS, tuple(range(8)), (), ())


def test_a_missing_cell_costs_its_replicate() -> None:
    pair = compare(without(rows(8, {}), lambda cell: cell == Cell(100, "random", 3)))
    assert (pair.percents, pair.n, pair.incomplete) == (PERCENTS, 7, (3,))


def test_or_its_fraction_where_six_replicates_are_at_stake() -> None:
    one = without(rows(6, {"final/train_loss": 0.1}), lambda cell: cell == Cell(100, "random", 3))
    pair = compare(one)
    assert (pair.percents, pair.n, pair.left_out) == (PERCENTS[:-1], 6, (100,))
    claim = judge(pair)["train_loss"]
    assert (claim.verdict, "100 %" in claim.reason) == ("cannot be told", True)
    missing = (Cell(5, "random", 1), Cell(25, "pretrained", 2), Cell(100, "random", 3))
    pair = compare(without(rows(8, {}), lambda cell: cell in missing))
    assert (len(pair.percents), pair.n) == (4, 6)


def test_a_fraction_without_any_finished_cell_is_left_out_and_said() -> None:
    pair = compare(without(rows(8, {"final/train_loss": 0.1}), lambda cell: cell.percent == 5))
    assert (pair.percents, pair.left_out, pair.n) == (PERCENTS[1:], (5,), 8)
    assert judge(pair)["train_loss"].verdict == "cannot be told"


def test_a_fraction_that_few_replicates_have_costs_no_replicate() -> None:
    pair = compare(rows(10, {}) + extra(75, range(6)))
    assert (pair.percents, pair.n, pair.left_out) == (PERCENTS, 10, (75,))


def test_a_sweep_that_is_running_shows_what_is_there() -> None:
    pair = compare(rows(3, {}) + extra(75, range(1), inits=("pretrained",)))
    assert (pair.percents, pair.n, pair.left_out) == (PERCENTS, 3, (75,))
    assert re.search(r"\b3\b.*\b6\b", pair.too_few)


def test_margins_and_signs() -> None:
    d = compare(rows(8, {"final/val_loss": (0.1, 0.003, 0.0, -0.003, -0.1)})).difference(Score.VAL_LOSS)
    assert d.is_below.tolist() == [False, False, False, False, True]
    assert d.is_not_below.tolist() == [True, True, True, True, False]
    assert d.at(0) == pytest.approx(0.1, abs=0.005)
    low, high = d.t_interval(0)
    assert d.interval(0)[0] < low < d.at(0) < high < d.interval(0)[1]  # the band is wider
