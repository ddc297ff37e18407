"""What a sweep is about to run, and for about how long: said before the first cell is trained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fmnist_transfer.console import about, counted, say
from fmnist_transfer.forecast import seconds_per_pass
from sweeps.cells import passes
from sweeps.grid import Cell

if TYPE_CHECKING:
    from sweeps.stages import SweepContext


def outline(context: "SweepContext", run_id: str) -> dict[str, str]:
    """What is about to run."""
    grid, recipe = context.grid, context.plan.recipe
    inits = ", ".join(grid.inits) if len(grid.inits) < 4 else f"{len(grid.inits)} inits"
    percents = f"{len(grid.percents)} fractions ({min(grid.percents)} to {max(grid.percents)} %)"
    if len(grid.percents) == 1:
        percents = f"{grid.percents[0]} %"
    budget = ", as many steps at each fraction" if context.plan.budget == "steps" else ""
    workers = counted(context.workers.n, "worker")
    own = ", a recipe of its own for each init" if context.settings.recipe == "tuned" else ""
    return {
        "cells": f"{len(grid.cells())}: {percents} x {inits} x {counted(grid.n_replicates, 'replicate')}",
        "each": f"{counted(recipe.epochs, 'epoch')} of {recipe.optimizer}{budget}{own}",
        "on": f"{workers}, {context.plan.device}" if context.workers.engine == "local" else "Ray",
        "run": run_id,
    }


def say_forecast(context: "SweepContext", todo: Mapping[Cell, int]) -> None:
    """For how long; of a cluster, a stack or a GPU it is seen once the first cells are done."""
    plan, head = context.plan, f"{counted(len(todo), 'cell')} to train"
    per_pass = None
    if context.workers.engine == "local" and not plan.stack:
        per_pass = seconds_per_pass(plan.spec, plan.recipe, plan.device, plan.precision)
    if per_pass is None:
        say(f"{head}; the time left shows once the first are done")
        return
    total = sum(passes(plan, cell, n_train) for cell, n_train in todo.items())
    head += ", without help" if context.settings.join else ""
    say(f"{head}: {about(per_pass * total / min(context.workers.n, len(todo)))}")
