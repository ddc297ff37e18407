"""Recipes tuned per init with equal effort: the settings tried, and the one that each cell trains with.

The registered recipe was tuned from random weights, so it favours them. With `--recipe tuned` each init tries nine
settings at 5, 25 and 100 % of the target; the lowest mean final validation loss wins. Tuning cells have replicates of
their own, so a setting is not judged by the draws that chose it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fmnist_transfer.errors import UserError
from fmnist_transfer.training.recipe import Recipe
from sweeps.grid import TRAITS, TUNING_REPLICATE, Cell, Init, RecipeChange
from sweeps.rows import Row, Score

PERCENTS = (100, 5, 25)
REPLICATES = (TUNING_REPLICATE, TUNING_REPLICATE + 1)
LEARNING_RATES = (1 / 3, 1.0, 3.0)  # multiples of the registered rate
TRUNK_FACTORS = (1.0, 0.3, 0.1)  # for inits that copy trained layers
WARM_UPS = {"one-cycle": (0.25, 0.1, 0.5), "cosine": (0.0, 0.1, 0.3), "constant": (0.0, 0.1, 0.3)}  # for other inits

Chosen = dict[Init, dict[int, RecipeChange]]  # init -> percent -> setting


def recipe_grid(init: Init, recipe: Recipe) -> list[RecipeChange]:
    """Nine settings for any init, the registered recipe among them."""
    rates = [recipe.learning_rate * multiple for multiple in LEARNING_RATES]
    if TRAITS[init].copies:
        return [RecipeChange(rate, factor, recipe.warm_up_share) for rate in rates for factor in TRUNK_FACTORS]
    return [RecipeChange(rate, 1.0, warm_up) for rate in rates for warm_up in WARM_UPS[recipe.schedule]]


def tuning_cells(inits: Iterable[Init], recipe: Recipe) -> list[Cell]:
    """Cells that try every setting, replicate by replicate, the longest first."""
    settings = [(init, change) for init in inits for change in recipe_grid(init, recipe)]
    order = itertools.product(REPLICATES, PERCENTS, settings)
    return [Cell(percent, init, replicate, change) for replicate, percent, (init, change) in order]


def choose(rows: Iterable[Row], inits: Iterable[Init], recipe: Recipe) -> Chosen:
    """Choose the setting with the lowest mean final validation loss for each init and percent of the grid.

    Settings with unfinished replicates are left out. Raises UserError if none is left.
    """
    losses = {row.cell: row.scores[Score.VAL_LOSS.key] for row in rows if Score.VAL_LOSS.key in row.scores}
    chosen: Chosen = {}
    for init in inits:
        for percent in sorted(PERCENTS):
            means = {}
            for change in recipe_grid(init, recipe):
                cells = [Cell(percent, init, replicate, change) for replicate in REPLICATES]
                if all(cell in losses for cell in cells):
                    means[change] = float(np.mean([losses[cell] for cell in cells]))
            if not means:
                raise UserError(f"no setting of init {init} at {percent} % finished all replicates; its runs say why")
            chosen.setdefault(init, {})[percent] = min(means, key=means.__getitem__)
    return chosen


def is_on_edge(change: RecipeChange, init: Init, recipe: Recipe) -> bool:
    """Return whether the setting is on the grid's edge, so that a wider grid might hold a better one."""
    rates, factors, warm_ups = map(set, zip(*map(dataclasses.astuple, recipe_grid(init, recipe)), strict=True))
    return (
        change.learning_rate in (min(rates), max(rates))
        or (len(factors) > 1 and change.trunk_factor == min(factors))  # factors above 1 make no sense
        or (len(warm_ups) > 1 and change.warm_up in {min(warm_ups), max(warm_ups)} - {0.0})
    )


def change_at(chosen: Mapping[int, RecipeChange], percent: int) -> RecipeChange:
    """Interpolate the settings in the logarithm of the number of images; outside the grid, use the nearest setting."""
    if percent in chosen:
        return chosen[percent]  # unchanged: logarithm and exponential would round it
    known = sorted(chosen)

    def at(values: Sequence[float]) -> float:
        return float(np.interp(math.log(percent), np.log(known), values))

    rates, factors, warm_ups = zip(*(dataclasses.astuple(chosen[percent]) for percent in known), strict=True)
    values = math.exp(at([*map(math.log, rates)])), math.exp(at([*map(math.log, factors)])), at(warm_ups)
    # Six digits, so that a cell is found by its setting even where logarithms round differently.
    return RecipeChange(*(float(f"{value:.6g}") for value in values))


def tuned_cells(cells: Iterable[Cell], chosen: Chosen) -> list[Cell]:
    """Give each cell its init's setting; drop cells of inits without one."""
    kept = [cell for cell in cells if cell.init in chosen]
    return [dataclasses.replace(cell, change=change_at(chosen[cell.init], cell.percent)) for cell in kept]
