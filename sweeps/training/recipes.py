"""Recipes tuned per init with equal effort, because the registered one was tuned from random weights.

Each init tries the same eight settings at 5, 25 and 100 % of the target, with four replicates that are not compared
later: two once made a near-tie look 0.0052 nats better than it was.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from scipy.stats import sem

from fmnist_transfer.errors import UserError
from fmnist_transfer.training.recipe import Recipe
from sweeps.grid import N_TUNING_REPLICATES, TUNING_REPLICATE, Cell, Init, RecipeChange, traits
from sweeps.rows import Row, Score

PERCENTS = (100, 5, 25)
REPLICATES = tuple(range(TUNING_REPLICATE, TUNING_REPLICATE + N_TUNING_REPLICATES))
RATES = (1.0, 0.3, 3.0, 10.0)  # multiples of the registered rate

Chosen = dict[Init, dict[int, RecipeChange]]  # init -> percent -> setting


def recipe_grid(init: Init, recipe: Recipe) -> list[RecipeChange]:
    """List eight settings, the same for every init, the registered first; that alone if the init uses no recipe."""
    share = recipe.warm_up_share
    warm_ups = share, share + (1 - share) / 3  # as registered, and longer: 1/4 becomes 1/2, 0 becomes 1/3
    grid = [RecipeChange(recipe.learning_rate * rate, warm_up) for warm_up in warm_ups for rate in RATES]
    return grid if traits(init).n_trainings else grid[:1]


def tuning_cells(inits: Iterable[Init], recipe: Recipe) -> list[Cell]:
    """Cells that try every setting where there is a choice, replicate by replicate, the longest first."""
    settings = [(init, change) for init in inits if traits(init).n_trainings for change in recipe_grid(init, recipe)]
    order = itertools.product(REPLICATES, PERCENTS, settings)
    return [Cell(percent, init, replicate, change) for replicate, percent, (init, change) in order]


def choose(rows: Iterable[Row], inits: Iterable[Init], recipe: Recipe) -> Chosen:
    """Choose a setting for each init and percent, among those with all replicates. Raises UserError without any."""
    losses = {row.cell: row.scores[Score.VAL_LOSS.key] for row in rows if Score.VAL_LOSS.key in row.scores}
    chosen: Chosen = {}
    for init, percent in itertools.product(inits, sorted(PERCENTS)):
        grid, finished = recipe_grid(init, recipe), dict[RecipeChange, np.ndarray]()
        for change in grid:
            cells = [Cell(percent, init, replicate, change) for replicate in REPLICATES]
            if losses.keys() >= {*cells}:
                finished[change] = np.array([losses[cell] for cell in cells])
        if len(grid) > 1 and not finished:
            raise UserError(f"no setting of init {init} at {percent} % finished all replicates; its runs say why")
        chosen.setdefault(init, {})[percent] = choose_setting(finished, grid[0])
    return chosen


def choose_setting(losses: Mapping[RecipeChange, np.ndarray], registered: RecipeChange) -> RecipeChange:
    """Return the registered setting, or the best of those whose mean is lower by over one standard error (paired)."""
    better = {change: own.mean() for change, own in losses.items()}
    if registered in losses:
        gains = {change: losses[registered] - own for change, own in losses.items()}
        better = {change: mean for change, mean in better.items() if gains[change].mean() > sem(gains[change])}
    return min(better, key=better.__getitem__, default=registered)


def is_on_edge(change: RecipeChange, recipe: Recipe) -> bool:
    """Return whether the setting is on the grid's edge, so that a wider grid might hold a better one."""
    edges = [rate * recipe.learning_rate for rate in (min(RATES), max(RATES))]
    return change.learning_rate in edges or change.warm_up > recipe.warm_up_share


def change_at(chosen: Mapping[int, RecipeChange], percent: int) -> RecipeChange:
    """Interpolate the settings in the logarithm of the number of images; outside the grid, use the nearest setting."""
    if percent in chosen:
        return chosen[percent]  # unchanged: logarithm and exponential would round it
    percents, settings = zip(*sorted(chosen.items()), strict=True)
    rates, warm_ups = np.array([dataclasses.astuple(setting) for setting in settings]).T
    at = partial(np.interp, np.log(percent), np.log(percents))
    # Six digits, so that a cell is found by its setting even where logarithms round differently.
    return RecipeChange(float(f"{np.exp(at(np.log(rates))):.6g}"), float(f"{at(warm_ups):.6g}"))


def tuned_cells(cells: Iterable[Cell], chosen: Chosen) -> list[Cell]:
    """Give each cell its init's setting; drop cells of inits without one."""
    kept = [cell for cell in cells if cell.init in chosen]
    return [dataclasses.replace(cell, change=change_at(chosen[cell.init], cell.percent)) for cell in kept]
