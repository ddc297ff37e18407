"""The plan of a sweep."""

from collections.abc import Iterable, Sequence

import pytest

from sweeps.grid import INITS, REPORTED, Cell, Grid, Init, by_fraction
from sweeps.settings import TransferSettings


def grid_of(percents: Iterable[int], inits: Sequence[Init], n: int) -> Grid:
    """Every fraction is judged."""
    return Grid(tuple(percents), tuple(inits), n, tuple(percents), n)


@pytest.mark.parametrize(
    ("flags", "judged", "n_cells"),
    [
        ({}, (5, 10, 25, 50, 100), 2 * (5 * 8 + 15 * 2)),
        ({"replicates": 1}, (5, 10, 25, 50, 100), 2 * 20),
        ({"fractions": (100, 5, 25), "replicates": 6}, (5, 25, 100), 2 * 3 * 6),
        ({"fractions": (20, 15)}, (15, 20), 2 * 2 * 8),
        ({"fractions": (5, 10, 15, 20), "judged": (20, 15), "curve_replicates": 3}, (15, 20), 2 * (2 * 8 + 2 * 3)),
    ],
)
def test_a_command_plans_more_replicates_of_judged_fractions(
    flags: dict[str, object], judged: tuple[int, ...], n_cells: int
) -> None:
    grid = TransferSettings(model_uri="models:/cnn2/best", **flags).grid  # type: ignore[arg-type]
    cells = grid.cells()
    assert (grid.judged, grid.inits, len(cells), len(set(cells))) == (judged, REPORTED, n_cells, n_cells)
    assert all(grid.has(cell) for cell in cells)
    assert not grid.has(Cell(grid.percents[0], "pretrained", grid.n_replicates))
    assert not grid.has(Cell(grid.percents[0], "matched", 0))


def test_all_fractions_come_before_any_second_replicate_judged_ones_first() -> None:
    cells = Grid((5, 10, 15, 20, 25), REPORTED, 4, (5, 25), 2).cells()[::2]
    order = [(cell.replicate, cell.percent) for cell in cells]
    first, second = [(0, p) for p in (5, 25, 10, 15, 20)], [(1, p) for p in (25, 5, 20, 15, 10)]
    assert order == [*first, *second, (2, 25), (2, 5), (3, 25), (3, 5)]
    assert not Grid((5, 10), REPORTED, 4, (5,), 2).has(Cell(10, "random", 2))


def test_work_goes_by_images_or_by_steps_and_by_trainings() -> None:
    cell, whole = Cell(5, "random", 0), Cell(100, "random", 0)
    assert cell.work("steps") == whole.work("steps") == whole.work("epochs") > 5 * cell.work("epochs")
    assert Cell(5, "selffer", 0).work("epochs") == 2 * cell.work("epochs")
    assert 0 < Cell(5, "frozen", 0).work("epochs") < cell.work("epochs")


def test_pairs_stay_together_and_replicates_are_complete_before_the_next() -> None:
    cells = grid_of([5, 50, 100], ["pretrained", "random"], 2).cells()
    assert [cell.replicate for cell in cells] == [0] * 6 + [1] * 6
    assert cells[:2] == [Cell(5, "pretrained", 0), Cell(5, "random", 0)]
    assert len(set(cells)) == 12
    assert cells[0].name == "pretrained 005% r0"
    many = grid_of(range(1, 101, 7), INITS, 3).cells()
    assert len(set(many)) == len(many) == 15 * len(INITS) * 3


def test_cells_of_a_fraction_are_grouped_replicate_by_replicate() -> None:
    groups = by_fraction(grid_of([5, 50, 100], ["pretrained", "random"], 2).cells())
    assert [group[0].percent for group in groups] == [100, 50, 5]
    assert [cell.replicate for cell in groups[0]] == [0, 0, 1, 1]
    assert [cell.init for cell in groups[0]] == ["pretrained", "random"] * 2
