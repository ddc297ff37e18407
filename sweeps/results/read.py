"""Read a sweep from the store: its rows and what they depend on, wherever it was run."""

import ast
import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from fmnist_transfer.data.split import CLASS_NAMES
from fmnist_transfer.errors import DataError, UsageError, UserError
from fmnist_transfer.store import roles
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Run, Store
from fmnist_transfer.training.recipe import Recipe, still_known
from sweeps.analysis.claims import Verdict, judge
from sweeps.analysis.comparison import Comparison, ImageVariances, compare
from sweeps.analysis.statistics import Array
from sweeps.grid import REPORTED, TUNING_REPLICATE, Cell, Grid, Init, RecipeChange, grids_of, verdicts_at
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
    tuning_rows: tuple[Row, ...]  # the finished and failed tuning cells
    provenance: Mapping[str, tuple[str, ...]]  # versions, commits and processor types of the finished cells, by tag
    judged_grid: Grid  # verdicts are about it: what was asked for, else the last complete plan, else the first
    is_complete: bool  # every cell of it is finished or failed
    is_extended: bool  # a verdict was given at fewer replicates
    image_variances: Mapping[Init, ImageVariances] = field(default_factory=dict)
    confusions: Mapping[tuple[int, Init], Array] = field(default_factory=dict)  # by percent: see `images.confusion`

    @property
    def target_names(self) -> list[str]:
        """Names of the target's classes, in the order of their labels."""
        return [CLASS_NAMES[int(digit)] for digit in self.params["split"].partition("/")[2]]

    @cached_property
    def pair(self) -> Comparison:
        return self.comparison("pretrained")

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        return judge(self.pair)

    def comparison(self, init: Init) -> Comparison:
        """Compare the init with random on the judged grid."""
        return replace(
            compare(self.rows, init, self.judged_grid.judged, self.judged_grid.n_replicates),
            image_variances=self.image_variances.get(init, {}),
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
    def inits(self) -> tuple[Init, ...]:
        return tuple(dict.fromkeys(row.cell.init for row in self.rows))

    @property
    def is_tuned(self) -> bool:
        return self.params.get("recipe_mode") == TUNED


def find_sweep(store: Store, run_id: str) -> str:
    """Check the run id of a sweep's parent; for `latest` return that of the sweep that was started last.

    Raises UserError if there is no sweep, UsageError if the id is not a sweep's, and DataError if the run was deleted.
    """
    sweeps = store.find(TRANSFER, role=Role.SWEEP)
    if run_id == "latest":
        if sweeps:
            return str(sweeps[0].info.run_id)
        raise UserError("there is no sweep in this store; run python -m sweeps.transfer first")
    known = f"known: {', '.join(f'{run.info.run_id} ({run.info.run_name})' for run in sweeps[:5]) or 'none'}"
    run = store.get(run_id)
    if run and run.info.lifecycle_stage != "active":
        raise DataError(f"run {run_id} was deleted; restore it in MLflow's UI or use another; {known}")
    if run is None or run.data.tags.get("role") != Role.SWEEP:
        raise UsageError(f"run {run_id} is no sweep of this store; {known}")
    return run_id


def read_sweep(store: Store, run_id: str, asked: Grid | None = None) -> LoggedSweep:
    """Read the sweep of this parent run, finished or not. `asked`: the grid to judge if it has both compared inits."""
    parent = store.client.get_run(run_id)
    params, tags = dict(parent.data.params), dict(parent.data.tags)
    children = store.find(TRANSFER, role=Role.CELL, parent=run_id)
    runs = {cell_of(run): run for run in counting_runs(children).values()}
    rows = {cell: row_of(cell, int(run.data.params["n_train"]), run) for cell, run in runs.items()}
    recipe, grids = _recipe_of(params), grids_of(tags)
    cells = list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))
    chosen: Chosen = {}
    if params.get("recipe_mode") == TUNED:
        for init in dict.fromkeys(cell.init for cell in cells):
            if rows.keys() >= {*tuning_cells([init], recipe)}:
                with contextlib.suppress(UserError):  # no setting finished in all replicates
                    chosen |= choose(rows.values(), [init], recipe)
        cells = tuned_cells(cells, chosen) + [cell for cell in cells if cell.init not in chosen]
    else:
        cells = list(dict.fromkeys([*cells, *rows]))
    n_images = {cell.percent: row.n_train for cell, row in rows.items()}
    of_grid = [rows.get(cell) or row_of(cell, n_images.get(cell.percent, 0), None) for cell in cells]
    open_cells = [row.cell for row in of_grid if row.status == "open"]
    plans = [grid for grid in grids if {*REPORTED} <= {*grid.inits}]  # without both, there is nothing to judge
    complete = [grid for grid in plans if not any(map(grid.has, open_cells))]
    no_plan = Grid((), (), 0, (), 0)  # of a sweep that was stopped before it made one
    judged = asked if asked in plans else [*complete[-1:], *plans, *grids, no_plan][0]
    finished = [runs[row.cell].data.tags for row in of_grid if row.status == "finished"]
    return LoggedSweep(
        run_id=run_id,
        name=str(parent.info.run_name),
        params=params,
        tags=tags,
        rows=tuple(sorted(of_grid, key=lambda row: row.cell.position)),
        recipe=recipe,
        chosen=chosen,
        tuning_rows=tuple(row for cell, row in rows.items() if cell.replicate >= TUNING_REPLICATE),
        provenance={key: tuple(sorted({own[key] for own in finished if key in own})) for key in PROVENANCE},
        judged_grid=judged,
        is_complete=judged in complete,
        is_extended=any(n < judged.n_replicates for n in verdicts_at(tags)),
    )


def counting_runs(runs: Iterable[Run]) -> dict[str, Run]:
    """Map each cell key to the run that counts: the earliest FINISHED run, else the latest FAILED one."""
    by_start = sorted(runs, key=lambda run: run.info.start_time)
    failed = [run for run in by_start if run.info.status == "FAILED"]
    finished = [run for run in reversed(by_start) if run.info.status == "FINISHED"]
    return {run.data.tags.get("cell_key", ""): run for run in [*failed, *finished]}  # the last of a key counts


def cell_of(run: Run) -> Cell:
    params, recipe = run.data.params, _recipe_of(run.data.params)
    change = RecipeChange(recipe.learning_rate, recipe.warm_up_share) if params.get("recipe_mode") == TUNED else None
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
    fields = {key.removeprefix("recipe."): text for key, text in params.items() if key.startswith("recipe.")}
    for name, text in fields.items():
        with contextlib.suppress(ValueError, SyntaxError):  # of a bare word
            fields[name] = ast.literal_eval(text)
    return Recipe(**still_known(fields))
