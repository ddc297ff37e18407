"""Equal grids, what is clearly better wins, what is between is interpolated."""

import dataclasses
import math

import numpy as np
import pytest

from fmnist_transfer.errors import UserError
from fmnist_transfer.training.recipe import Recipe
from sweeps.grid import INITS, N_TUNING, Cell, Init, RecipeChange
from sweeps.rows import Row, Score
from sweeps.training.recipes import (
    PERCENTS,
    REPLICATES,
    change_at,
    choose,
    choose_setting,
    is_on_edge,
    recipe_grid,
    tuned_cells,
    tuning_cells,
)

RECIPE = Recipe(learning_rate=3e-3)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_every_init_tries_the_same_settings_among_them_the_registered(schedule: str) -> None:
    recipe = Recipe(learning_rate=3e-3, schedule=schedule)
    own = RecipeChange(recipe.learning_rate, recipe.warm_up_share)
    for init in (*INITS, "pretrained@1"):
        grid = recipe_grid(init, recipe)
        if init == "frozen":  # uses no recipe
            assert (grid, tuning_cells([init], recipe)) == ([own], [])
            assert choose([], [init], recipe) == {init: dict.fromkeys((5, 25, 100), own)}
            continue
        assert grid == recipe_grid("random", recipe)
        assert len(set(grid)) == 8
        assert grid[0] == own
        assert len(tuning_cells([init], recipe)) == N_TUNING
        assert {change.learning_rate for change in grid} == {rate * 3e-3 for rate in (0.3, 1.0, 3.0, 10.0)}
        assert min(change.warm_up for change in grid) == own.warm_up
    steps = range(100)
    changed = dataclasses.replace(recipe, **Cell(5, "random", 0, own).setting)
    assert [changed.learning_rate_at(i, 100) for i in steps] == [recipe.learning_rate_at(i, 100) for i in steps]


def rows(best: dict[Init, dict[int, RecipeChange]]) -> list[Row]:
    found = []
    for cell in tuning_cells(best, RECIPE):
        # The first replicate alone would choose another one: the mean counts.
        loss = 0.5 if cell.change == best[cell.init][cell.percent] else 0.6
        luck = -0.15 if cell.replicate == REPLICATES[0] and cell.change == recipe_grid(cell.init, RECIPE)[1] else 0.0
        found.append(Row(cell, 1, "id", "finished", {Score.VAL_LOSS.key: loss + luck}))
    return found


def test_the_lowest_mean_is_chosen_at_each_fraction() -> None:
    inits: tuple[Init, ...] = ("pretrained", "random")
    best = {init: dict(zip(PERCENTS, recipe_grid(init, RECIPE)[4:7], strict=True)) for init in inits}
    assert choose(rows(best), inits, RECIPE) == {init: dict(sorted(best[init].items())) for init in inits}


def test_the_registered_setting_stays_unless_another_is_better_by_more_than_a_standard_error() -> None:
    own, other, worse = recipe_grid("random", RECIPE)[:3]
    base = np.array([0.5, 0.6, 0.7, 0.8])  # replicates differ more than settings do: differences are paired
    gains = np.array([0.01, 0.03, -0.01, 0.01])  # mean 0.01, standard error 0.00816
    assert choose_setting({own: base, other: base - gains, worse: base + 0.1}, own) == other
    assert choose_setting({own: base, other: base - gains + 0.002}, own) == own  # mean 0.008
    unsure = np.array([0.5, -0.3, 0.3, -0.3])  # the lowest mean of all, by luck
    assert choose_setting({own: base, worse: base - unsure, other: base - gains}, own) == other
    assert choose_setting({worse: base + 0.1, other: base}, own) == other  # the registered one failed


def test_a_setting_that_failed_once_is_out() -> None:
    best = {"random": dict.fromkeys(PERCENTS, recipe_grid("random", RECIPE)[5])}
    table = [row for row in rows(best) if row.cell != Cell(100, "random", REPLICATES[1], best["random"][100])]
    chosen = choose(table, ["random"], RECIPE)["random"]
    assert chosen[100] == recipe_grid("random", RECIPE)[0]  # one replicate's luck is within its standard error
    assert chosen[5] == best["random"][5]
    with pytest.raises(UserError, match="random at 5 %"):
        choose([], ["random"], RECIPE)


def test_a_setting_on_the_edge_might_be_surpassed_by_one_outside() -> None:
    on_edge = [is_on_edge(change, RECIPE) for change in recipe_grid("random", RECIPE)]
    assert on_edge == [False, True, False, True, True, True, True, True]


def test_between_the_fractions_it_is_interpolated_in_log() -> None:
    chosen = {5: RecipeChange(1e-2, 0.1), 25: RecipeChange(1e-3, 0.5), 100: RecipeChange(1e-3, 0.5)}
    assert change_at(chosen, 25) == chosen[25]
    between = change_at(chosen, 10)
    share = math.log(2) / math.log(5)
    assert between.learning_rate == pytest.approx(10 ** (-2 - share), rel=1e-5)
    assert between.warm_up == pytest.approx(0.1 + 0.4 * share, rel=1e-5)
    assert change_at(chosen, 2).learning_rate == pytest.approx(1e-2)


def test_a_setting_is_not_judged_by_the_draws_that_chose_it() -> None:
    best = {"pretrained": dict.fromkeys(PERCENTS, recipe_grid("pretrained", RECIPE)[4])}
    chosen = choose(rows(best), ["pretrained"], RECIPE)
    cells = tuned_cells([Cell(25, "pretrained", 0), Cell(25, "pretrained", 7), Cell(25, "random", 0)], chosen)
    assert len(cells) == 2
    assert {cell.change for cell in cells} == {best["pretrained"][25]}
    assert not {cell.replicate for cell in cells} & {cell.replicate for cell in tuning_cells(["pretrained"], RECIPE)}
