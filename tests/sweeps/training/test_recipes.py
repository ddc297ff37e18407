"""Equal grids, the lowest mean wins, what is between is interpolated."""

import math

import pytest

from fmnist_transfer.errors import UserError
from fmnist_transfer.training.recipe import Recipe
from sweeps.grid import INITS, Cell, Init, RecipeChange
from sweeps.rows import Row, Score
from sweeps.training.recipes import PERCENTS, REPLICATES, change_at, choose, recipe_grid, tuned_cells, tuning_cells

RECIPE = Recipe(learning_rate=3e-3)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_grids_are_of_equal_size_and_hold_the_registered_recipe(schedule: str) -> None:
    recipe = Recipe(learning_rate=3e-3, schedule=schedule)
    own = RecipeChange(recipe.learning_rate, 1.0, recipe.warm_up_share)
    for init in INITS:
        grid = recipe_grid(init, recipe)
        assert len(set(grid)) == 9
        assert own in grid
    steps = range(100)
    assert [own.applied_to(recipe).learning_rate_at(i, 100) for i in steps] == [
        recipe.learning_rate_at(i, 100) for i in steps
    ]


def rows(best: dict[Init, dict[int, RecipeChange]], inits: tuple[Init, ...]) -> list[Row]:
    found = []
    for cell in tuning_cells(inits, RECIPE):
        # The first replicate alone would choose another one: the mean counts.
        loss = 0.5 if cell.change == best[cell.init][cell.percent] else 0.6
        luck = -0.15 if cell.replicate == REPLICATES[0] and cell.change == recipe_grid(cell.init, RECIPE)[0] else 0.0
        found.append(Row(cell, 1, "id", "finished", {Score.VAL_LOSS.key: loss + luck}))
    return found


def test_the_lowest_mean_is_chosen_at_each_fraction() -> None:
    inits: tuple[Init, ...] = ("pretrained", "random")
    best = {init: dict(zip(PERCENTS, recipe_grid(init, RECIPE)[4:7], strict=True)) for init in inits}
    assert choose(rows(best, inits), inits, RECIPE) == {init: dict(sorted(best[init].items())) for init in inits}


def test_a_setting_that_failed_once_is_out() -> None:
    best = {"random": dict.fromkeys(PERCENTS, recipe_grid("random", RECIPE)[5])}
    table = [
        row for row in rows(best, ("random",)) if row.cell != Cell(100, "random", REPLICATES[1], best["random"][100])
    ]
    chosen = choose(table, ["random"], RECIPE)["random"]
    assert chosen[100] != best["random"][100]
    assert chosen[5] == best["random"][5]
    with pytest.raises(UserError, match="random at 5 %"):
        choose([], ["random"], RECIPE)


def test_between_the_fractions_it_is_interpolated_in_log() -> None:
    chosen = {5: RecipeChange(1e-2, 1.0, 0.1), 25: RecipeChange(1e-3, 0.1, 0.5), 100: RecipeChange(1e-3, 0.1, 0.5)}
    assert change_at(chosen, 25) == chosen[25]
    between = change_at(chosen, 10)
    share = math.log(2) / math.log(5)
    assert between.learning_rate == pytest.approx(10 ** (-2 - share), rel=1e-5)
    assert between.trunk_factor == pytest.approx(10**-share, rel=1e-5)
    assert between.warm_up == pytest.approx(0.1 + 0.4 * share, rel=1e-5)
    assert change_at(chosen, 2).learning_rate == pytest.approx(1e-2)


def test_a_setting_is_not_judged_by_the_draws_that_chose_it() -> None:
    best = {"pretrained": dict.fromkeys(PERCENTS, recipe_grid("pretrained", RECIPE)[4])}
    chosen = choose(rows(best, ("pretrained",)), ["pretrained"], RECIPE)
    cells = tuned_cells([Cell(25, "pretrained", 0), Cell(25, "pretrained", 7), Cell(25, "random", 0)], chosen)
    assert len(cells) == 2
    assert {cell.change for cell in cells} == {best["pretrained"][25]}
    assert not {cell.replicate for cell in cells} & {cell.replicate for cell in tuning_cells(["pretrained"], RECIPE)}
