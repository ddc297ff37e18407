"""Plans of a sweep in the tags of its parent run: the grids asked for so far, and where verdicts were given."""

import json
from collections.abc import Mapping

from fmnist_transfer.store.runs import Store
from sweeps.grid import Cell, Grid

GRIDS = "grids"  # tag: every plan so far, in order, as JSON
VERDICTS_AT = "verdicts_at"  # tag: numbers of replicates at which verdicts were given
NO_GRID = Grid((), (), 0, (), 0)  # the plan of a sweep that was stopped before it made one


def grids_of(tags: Mapping[str, str]) -> list[Grid]:
    grids = []
    for percents, inits, n, *more in json.loads(tags.get(GRIDS, "[]")):
        judged, n_curve_replicates = more or (percents, n)  # earlier versions trained all fractions alike
        grids.append(Grid(tuple(percents), tuple(inits), n, tuple(judged), n_curve_replicates))
    return grids


def add_grid(store: Store, run_id: str, new_grid: Grid) -> list[Cell]:
    """Add the grid to the plans of the sweep. Return the cells of all, each once."""
    earlier = grids_of(store.client.get_run(run_id).data.tags)
    grids = [*(grid for grid in earlier if grid != new_grid), new_grid]
    tags = {
        GRIDS: json.dumps(grids, separators=(",", ":")),
        "fractions": " ".join(map(str, sorted({percent for grid in grids for percent in grid.percents}))),
        "inits": " ".join(sorted({init for grid in grids for init in grid.inits})),
        "replicates": max(grid.n_replicates for grid in grids),
    }
    store.log(run_id, tags=tags)
    return list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))


def verdicts_at(tags: Mapping[str, str]) -> set[int]:
    return {int(n) for n in tags.get(VERDICTS_AT, "").split()}


def note_verdict(store: Store, run_id: str, grid: Grid) -> None:
    """Note that a verdict is given on this plan, so that a later one on more replicates is marked as an extension."""
    numbers = verdicts_at(store.client.get_run(run_id).data.tags) | {grid.n_replicates}
    store.log(run_id, tags={VERDICTS_AT: " ".join(map(str, sorted(numbers)))})
