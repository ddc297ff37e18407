"""Read a sweep from the store: its rows and what they depend on, wherever it was run."""

import ast
import contextlib
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmnist_transfer.errors import DataError, UsageError, UserError
from fmnist_transfer.network.cnn2 import REFERENCE_SPEC
from fmnist_transfer.store import roles
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Run, Store
from fmnist_transfer.training.recipe import REFERENCE_RECIPE, Recipe, still_known
from sweeps.analysis.comparison import Comparison, ImageVariances, compare
from sweeps.grid import NO_GRID, REPORTED, TUNING_REPLICATE, Cell, Grid, Init, RecipeChange, grids_of, verdicts_at
from sweeps.rows import GROUPS, Row, Status
from sweeps.training.recipes import Chosen, choose, tuned_cells, tuning_cells

TUNED = "tuned"
STATUSES: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed"}  # of the runs that count
PROVENANCE = ("package_version", "mlflow.source.git.commit", "torch_build", "cpu_capability")


@dataclass(frozen=True)
class LoggedSweep:
    run_id: str
    name: str
    params: Mapping[str, str]  # the sweep's identity: spec, recipe, split, budget, seed ...
    tags: Mapping[str, str]
    rows: tuple[Row, ...]  # every cell of all plans, finished or not
    recipe: Recipe  # the registered one, with the sweep's epochs
    chosen: Chosen  # settings from `--recipe tuned`, of the inits whose tuning cells are done
    n_tuning: tuple[int, int, int]  # tuning cells: done, failed among these, and in total
    tuning_rows: tuple[Row, ...]  # the finished and failed tuning cells
    provenance: Mapping[str, tuple[str, ...]]  # versions, commits and processor types of the finished cells, by tag
    judged_grid: Grid  # verdicts are about it: what was asked for, else the last complete plan, else the first
    is_complete: bool  # every cell of it is finished or failed
    is_extended: bool  # a verdict was given at fewer replicates
    image_variances: Mapping[Init, ImageVariances] = field(default_factory=dict)

    @functools.cached_property
    def pair(self) -> Comparison:
        return self.comparison("pretrained")

    def comparison(self, init: Init) -> Comparison:
        """Compare the init with random on the judged grid."""
        return compare(
            self.rows,
            init,
            judged=self.judged_grid.judged,
            n_replicates=self.judged_grid.n_replicates,
            image_variances=self.image_variances.get(init),
            is_tuned=self.is_tuned,
            is_complete=self.is_complete,
            is_extended=self.is_extended,
        )

    @property
    def n_sources(self) -> int:
        """Number of source networks that the judged replicates start from."""
        return self.judged_grid.n_replicates if "sources" in self.params else 1

    @property
    def open_rows(self) -> list[Row]:
        """Cells of the judged grid that are not done."""
        return [row for row in self.rows if self.judged_grid.has(row.cell) and row.status == "open"]

    @property
    def seconds_left(self) -> float:
        """Rough forecast of the training time of `open_rows`; NaN before any cell is finished."""
        done, budget = [row for row in self.rows if row.scores], self.params.get("budget", "epochs")
        if not (work_done := sum(row.cell.work(budget) for row in done)):
            return math.nan
        seconds = sum(row.scores.get(roles.SECONDS, math.nan) for row in done)
        return sum(row.cell.work(budget) for row in self.open_rows) * seconds / work_done

    @property
    def halves(self) -> tuple[str, str]:
        """Classes of the source and of the target."""
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
        return wanted.items() <= self.params.items() and self.recipe == REFERENCE_RECIPE and not self.is_tuned


def find_sweep(store: Store, run_id: str) -> str:
    """Check the run id of a sweep's parent; for `latest` return that of the sweep that was started last.

    Raises UserError if there is no sweep, UsageError if the id is not a sweep's, and DataError if the run was deleted.
    """
    sweeps = store.find(TRANSFER, role=Role.SWEEP)
    if run_id == "latest":
        if sweeps:
            return str(sweeps[0].info.run_id)
        raise UserError("there is no sweep in this store; run python -m sweeps.transfer first")
    names = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in sweeps[:5])
    known = f"the latest sweeps are {names}" if names else "there is no sweep yet"
    run = store.get(run_id)
    if run is None:
        raise UsageError(f"no run {run_id} in this store; {known}")
    if run.info.lifecycle_stage != "active":
        raise DataError(f"run {run_id} was deleted; restore it in MLflow's UI or use another; {known}")
    if run.data.tags.get("role") != Role.SWEEP:
        raise UsageError(f"run {run_id} ({run.info.run_name}) is no sweep; {known}")
    return run_id


def read_sweep(store: Store, run_id: str, asked: Grid | None = None) -> LoggedSweep:
    """Read the sweep of this parent run as it is now, finished or not.

    `asked` is the grid to judge if it has the two inits that are compared.
    """
    parent = store.client.get_run(run_id)
    params, tags = dict(parent.data.params), dict(parent.data.tags)
    children = store.find(TRANSFER, role=Role.CELL, parent=run_id)
    runs = {cell_of(run): run for run in counting_runs(children).values()}
    rows = {cell: row_of(cell, int(run.data.params["n_train"]), run) for cell, run in runs.items()}
    recipe, grids = _recipe_of(params), grids_of(tags)
    cells = list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))
    chosen: Chosen = {}
    tuning: list[Row | None] = []  # None: not done
    if params.get("recipe_mode") == TUNED:
        for init in dict.fromkeys(cell.init for cell in cells):
            of_init = [rows.get(cell) for cell in tuning_cells([init], recipe)]
            tuning += of_init
            if None not in of_init:
                with contextlib.suppress(UserError):  # no setting finished in all replicates
                    chosen |= choose(rows.values(), [init], recipe)
        cells = tuned_cells(cells, chosen) + [cell for cell in cells if cell.init not in chosen]
    else:
        cells = list(dict.fromkeys([*cells, *rows]))
    n_images = {cell.percent: row.n_train for cell, row in rows.items()}
    of_grid = [rows.get(cell, Row(cell, n_images.get(cell.percent, 0), "", "open", {})) for cell in cells]
    open_cells = [row.cell for row in of_grid if row.status == "open"]
    plans = [grid for grid in grids if {*REPORTED} <= {*grid.inits}]  # without both, there is nothing to judge
    complete = [grid for grid in plans if not any(map(grid.has, open_cells))]
    judged = asked if asked in plans else next(iter([*complete[-1:], *plans, *grids]), NO_GRID)
    finished = [runs[row.cell].data.tags for row in of_grid if row.status == "finished"]
    tuned = [row for row in tuning if row]
    return LoggedSweep(
        run_id=run_id,
        name=str(parent.info.run_name),
        params=params,
        tags=tags,
        rows=tuple(sorted(of_grid, key=lambda row: row.cell.position)),
        recipe=recipe,
        chosen=chosen,
        n_tuning=(len(tuned), sum(row.status == "failed" for row in tuned), len(tuning)),
        tuning_rows=tuple(row for cell, row in rows.items() if cell.replicate >= TUNING_REPLICATE),
        provenance={key: tuple(sorted({own[key] for own in finished if key in own})) for key in PROVENANCE},
        judged_grid=judged,
        is_complete=judged in complete,
        is_extended=any(n < judged.n_replicates for n in verdicts_at(tags)),
    )


def counting_runs(runs: Iterable[Run]) -> dict[str, Run]:
    """Map each cell key to the run that counts: the earliest FINISHED run, else the latest FAILED one."""
    counting: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.info.start_time):
        key = run.data.tags.get("cell_key", "")
        is_decided = key in counting and counting[key].info.status == "FINISHED"
        if run.info.status in STATUSES and not is_decided:
            counting[key] = run
    return counting


def cell_of(run: Run) -> Cell:
    params, change = run.data.params, None
    if params.get("recipe_mode") == TUNED:
        recipe = _recipe_of(params)
        change = RecipeChange(recipe.learning_rate, recipe.warm_up_share)
    return Cell(int(params["percent"]), params["init"], int(params["replicate"]), change)


def row_of(cell: Cell, n_train: int, run: Run | None) -> Row:
    if run is None:
        return Row(cell, n_train, "", "open", {})
    status = STATUSES.get(run.info.status, "open")
    metrics = run.data.metrics.items() if status == "finished" else ()
    scores = {key: value for key, value in metrics if key.partition("/")[0] in GROUPS}
    return Row(cell, n_train, str(run.info.run_id), status, scores)


def _recipe_of(params: Mapping[str, str]) -> Recipe:
    """Read the recipe from a run's params: the inverse of `roles.settings_params`."""
    fields: dict[str, Any] = {}
    for key, text in params.items():
        if key.startswith("recipe."):
            name = key.removeprefix("recipe.")
            fields[name] = text
            with contextlib.suppress(ValueError, SyntaxError):  # a bare word
                fields[name] = ast.literal_eval(text)
    return Recipe(**still_known(fields))
