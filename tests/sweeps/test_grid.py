"""The plan of a sweep."""

from sweeps.grid import INITS, Cell, Grid, by_fraction, coarse_to_fine


def test_coarse_to_fine_starts_at_both_ends() -> None:
    order = coarse_to_fine(range(5, 101, 5))
    assert order[:5] == [100, 5, 50, 25, 75]
    assert sorted(order) == list(range(5, 101, 5))
    assert coarse_to_fine([30]) == [30]
    assert coarse_to_fine([10, 5]) == [10, 5]


def test_pairs_stay_together_and_replicates_are_complete_before_the_next() -> None:
    cells = Grid([5, 50, 100], ["pretrained", "random"], 2).cells()
    assert [cell.replicate for cell in cells] == [0] * 6 + [1] * 6
    assert cells[:2] == [Cell(100, "pretrained", 0), Cell(100, "random", 0)]
    assert len(set(cells)) == 12
    assert cells[0].name == "pretrained 100% r0"
    many = Grid(range(1, 101, 7), INITS, 3).cells()
    assert len(set(many)) == len(many) == 15 * len(INITS) * 3


def test_the_last_replicate_starts_with_the_longest_cells() -> None:
    cells = Grid([5, 50, 75, 100], ["pretrained", "random"], 3).cells()
    percents = [[cell.percent for cell in cells if cell.replicate == replicate][::2] for replicate in range(3)]
    assert percents == [[100, 5, 50, 75], [100, 5, 50, 75], [100, 75, 50, 5]]


def test_a_single_replicate_starts_at_both_ends_and_goes_on_with_the_longest() -> None:
    assert [cell.percent for cell in Grid([5, 50, 75, 100], ["random"], 1).cells()] == [100, 5, 75, 50]
    assert [cell.percent for cell in Grid([5, 50], ["random"], 1).cells()] == [50, 5]
    assert [cell.percent for cell in Grid([5], ["random"], 1).cells()] == [5]


def test_cells_of_a_fraction_are_grouped_replicate_by_replicate() -> None:
    groups = by_fraction(Grid([5, 50, 100], ["pretrained", "random"], 2).cells())
    assert [group[0].percent for group in groups] == [100, 5, 50]
    assert [cell.replicate for cell in groups[0]] == [0, 0, 1, 1]
    assert [cell.init for cell in groups[0]] == ["pretrained", "random"] * 2
