"""Read a sweep from the store: its rows and what they depend on, wherever it was run.

logged = read_sweep(store, find_sweep(store, "latest"))
"""

import ast
import contextlib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fmnist_transfer.errors import DataError, UsageError, UserError
from fmnist_transfer.network.cnn2 import REFERENCE_SPEC
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Run, Store
from fmnist_transfer.training.recipe import REFERENCE_RECIPE, Recipe
from sweeps.analysis.comparison import Comparison, compare
from sweeps.grid import TUNING_REPLICATE, Cell, Grid, Init, RecipeChange
from sweeps.rows import GROUPS, Row, Status
from sweeps.training.recipes import Chosen, choose, tuned_cells, tuning_cells

GRIDS = "grids"  # tag of the parent: every grid asked for so far, as JSON
DIVERGED = "Diverged"  # start of the tag `reason` of a run that diverged
TUNED = "tuned"
PROVENANCE = ("package_version", "mlflow.source.git.commit", "torch_build", "cpu_capability")


@dataclass(frozen=True)
class LoggedSweep:
    run_id: str
    name: str
    params: Mapping[str, str]
    """The sweep's identity: spec, recipe, split, budget, seed ..."""
    tags: Mapping[str, str]
    rows: tuple[Row, ...]
    """Every cell of its grid, finished or not."""
    recipe: Recipe
    """The registered recipe, with the sweep's epochs."""
    chosen: Chosen
    """Settings from `--recipe tuned`, of the inits whose tuning cells are done."""
    n_tuning: tuple[int, int, int]
    """Numbers of tuning cells: done, failed among these, and in total."""
    tuning_rows: tuple[Row, ...]
    """The finished and failed tuning cells."""
    provenance: Mapping[str, tuple[str, ...]]
    """Versions, commits and processor types of the finished cells, by tag."""

    @functools.cached_property
    def pair(self) -> Comparison:
        """Comparison of pretrained with random."""
        return compare(self.rows)

    @property
    def halves(self) -> tuple[str, str]:
        """The classes of the source and of the target, as digits."""
        source, _, target = self.params.get("split", "?/?").partition("/")
        return source, target

    @property
    def inits(self) -> tuple[Init, ...]:
        return tuple(dict.fromkeys(row.cell.init for row in self.rows))

    @property
    def is_tuned(self) -> bool:
        return self.params.get("recipe_mode") == TUNED

    @property
    def is_reference(self) -> bool:
        """True if the sweep uses the original report's network, recipe and budget."""
        wanted = {f"spec.{key}": str(value) for key, value in REFERENCE_SPEC.to_dict().items()} | {"budget": "epochs"}
        same = all(self.params.get(key) == value for key, value in wanted.items())
        return same and self.recipe == REFERENCE_RECIPE and not self.is_tuned


def find_sweep(store: Store, run_id: str) -> "Run":
    """Find a sweep's parent run by its id, or with `latest` the sweep that was started last.

    Raises UserError if there is no sweep, UsageError if the id is not a sweep's, and DataError if the run was deleted.
    """
    if run_id == "latest":
        sweeps = store.find(TRANSFER, role=Role.SWEEP)
        if not sweeps:
            raise UserError("there is no sweep in this store; run python -m sweeps.transfer first")
        return sweeps[0]
    run = store.get(run_id)
    if run is None:
        raise UsageError(f"no run {run_id} in this store; {_known_sweeps(store)}")
    if run.info.lifecycle_stage != "active":
        raise DataError(f"run {run_id} was deleted; restore it in MLflow's UI or use another; {_known_sweeps(store)}")
    if run.data.tags.get("role") != Role.SWEEP:
        raise UsageError(f"run {run_id} ({run.info.run_name}) is no sweep; {_known_sweeps(store)}")
    return run


def _known_sweeps(store: Store) -> str:
    known = [f"{run.info.run_id} ({run.info.run_name})" for run in store.find(TRANSFER, role=Role.SWEEP)[:5]]
    return f"the latest sweeps are {', '.join(known)}" if known else "there is no sweep yet"


def read_sweep(store: Store, parent: "Run") -> LoggedSweep:
    """Read the sweep as it is now, finished or not."""
    params = dict(parent.data.params)
    children = store.find(TRANSFER, role=Role.CELL, parent=parent.info.run_id)
    runs = {cell_of(run): run for run in counting_runs(children).values()}
    rows = {cell: row_of(cell, int(run.data.params["n_train"]), run) for cell, run in runs.items()}
    recipe = _recipe_of(params)
    planned = asked_cells(grids_of(parent.data.tags))
    cells = list(dict.fromkeys([*planned, *runs]))
    chosen: Chosen = {}
    n_tuning = (0, 0, 0)
    if params.get("recipe_mode") == TUNED:
        cells, chosen, n_tuning = _tuned_grid(planned, rows, recipe)
    n_images = {cell.percent: row.n_train for cell, row in rows.items()}
    of_grid = [rows.get(cell, Row(cell, n_images.get(cell.percent, 0), "", "open", {})) for cell in cells]
    finished = [runs[row.cell] for row in of_grid if row.status == "finished"]
    return LoggedSweep(
        run_id=str(parent.info.run_id),
        name=str(parent.info.run_name),
        params=params,
        tags=dict(parent.data.tags),
        rows=tuple(sorted(of_grid, key=lambda row: row.cell.position)),
        recipe=recipe,
        chosen=chosen,
        n_tuning=n_tuning,
        tuning_rows=tuple(row for cell, row in rows.items() if cell.replicate >= TUNING_REPLICATE),
        provenance={
            key: tuple(sorted({run.data.tags[key] for run in finished if key in run.data.tags})) for key in PROVENANCE
        },
    )


def counting_runs(runs: Iterable[Run]) -> dict[str, Run]:
    """Map each cell key to the run that counts: the earliest FINISHED run, else the latest FAILED one.

    Args:
        runs: runs of cells, in any order.
    """
    counting: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.info.start_time):
        key = run.data.tags.get("cell_key", "")
        is_finished = run.info.status == "FINISHED"
        if is_finished or run.info.status == "FAILED":
            known = counting.get(key)
            if known is None or known.info.status == "FAILED":
                counting[key] = run
    return counting


def diverged(run: Run) -> bool:
    """Return whether a FAILED run diverged; its cell would diverge again."""
    return run.data.tags.get("reason", "").startswith(DIVERGED)


def cell_of(run: "Run") -> Cell:
    """The cell that a run trained."""
    params = run.data.params
    change = None
    if params.get("recipe_mode") == TUNED:
        recipe = _recipe_of(params)
        change = RecipeChange(recipe.learning_rate, recipe.trunk_factor, recipe.warm_up_share)
    return Cell(int(params["percent"]), cast(Init, params["init"]), int(params["replicate"]), change)


def row_of(cell: Cell, n_train: int, run: Run | None) -> Row:
    """Row of the cell whose counting run is `run`; `open` if `run` is None."""
    statuses: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed"}
    status = statuses.get(run.info.status, "open") if run else "open"
    scores = run.data.metrics if run and status == "finished" else {}
    run_id = str(run.info.run_id) if run else ""
    return Row(cell, n_train, run_id, status, {key: scores[key] for key in scores if key.split("/")[0] in GROUPS})


def _recipe_of(params: Mapping[str, str]) -> Recipe:
    """Recipe from a run's params: the inverse of `roles.settings_params`."""
    fields: dict[str, Any] = {}
    for key, text in params.items():
        if key.startswith("recipe."):
            try:
                fields[key.removeprefix("recipe.")] = ast.literal_eval(text)
            except (ValueError, SyntaxError):  # a bare word
                fields[key.removeprefix("recipe.")] = text
    return Recipe.from_dict(fields)


def grids_of(tags: Mapping[str, str]) -> list[Grid]:
    """Grids asked for so far, from the parent's tags."""
    return [Grid(tuple(percents), tuple(inits), n) for percents, inits, n in json.loads(tags.get(GRIDS, "[]"))]


def add_grid(store: Store, run_id: str, grid: Grid) -> list[Grid]:
    """Add the grid to the tags of the sweep's parent; return all grids asked for so far."""
    before = grids_of(store.client.get_run(run_id).data.tags)
    grids = before if grid in before else [*before, grid]
    cells = asked_cells(grids)
    tags = {
        GRIDS: json.dumps(grids),
        "fractions": " ".join(map(str, sorted({cell.percent for cell in cells}))),
        "inits": " ".join(sorted({cell.init for cell in cells})),
        "replicates": str(max(grid.n_replicates for grid in grids)),
    }
    store.log(run_id, tags=tags)
    return grids


def asked_cells(grids: Iterable[Grid]) -> list[Cell]:
    """Cells of all grids, each once."""
    return list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))


def _tuned_grid(
    cells: Sequence[Cell], rows: Mapping[Cell, Row], recipe: Recipe
) -> tuple[list[Cell], Chosen, tuple[int, int, int]]:
    """Cells with their settings, the settings, and the numbers of tuning cells done, failed, and in total.

    Cells of an init whose tuning cells are not all done have no setting.
    """
    chosen: Chosen = {}
    n_done, n_failed, n = 0, 0, 0
    for init in dict.fromkeys(cell.init for cell in cells):
        tried = tuning_cells([init], recipe)
        done = [rows[cell] for cell in tried if cell in rows and rows[cell].status != "open"]
        n_done, n = n_done + len(done), n + len(tried)
        n_failed += sum(row.status == "failed" for row in done)
        if len(done) == len(tried):
            with contextlib.suppress(UserError):  # no setting finished in all replicates
                chosen |= choose(done, [init], recipe)
    without = [cell for cell in cells if cell.init not in chosen]
    return tuned_cells(cells, chosen) + without, chosen, (n_done, n_failed, n)
