"""Ledger of a sweep's cells. A cell is done if a FINISHED run with its `cell_key` is below the sweep's parent.

The runs are listed once, when the ledger is made; only the driver adds to them. The parent gets nothing per cell.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

from fmnist_transfer.data.examples import Half, n_train
from fmnist_transfer.identity import Identity, identity
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.opening import open_parent
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE, TRANSFER, Role, result_rows, settings_params
from fmnist_transfer.store.runs import OpenRuns, Run, Store
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.training.score import pack_image_scores
from fmnist_transfer.workers.task import Outcome
from sweeps.grid import Cell, traits
from sweeps.results.read import TUNED, counting_runs, row_of
from sweeps.rows import Row
from sweeps.training.cells import CellPlan, CellResult

FIRST_STEP = "first_step_seconds"


def identify_sweep(model: TrainedModel, plan: CellPlan, *, is_tuned: bool, has_own_sources: bool) -> Identity:
    """Identify a sweep by all that a cell's result depends on, except fraction, init, replicate and tuned setting."""
    facts = settings_params(plan.spec, plan.recipe)
    facts |= {"weights_digest": weights_digest(model.state), "split": str(model.split), "budget": plan.budget}
    facts |= {"seed": plan.seed, "data_sha256": plan.half.data_sha256, "dtype": plan.precision}
    if plan.stack:
        facts["stacked"] = True  # rounds differently; on CUDA dropout masks differ, too
    if is_tuned:
        facts["recipe_mode"] = TUNED
    if has_own_sources:
        facts["sources"] = "one a replicate"  # part of the key: do not reword
    return identity(device=plan.device, **facts)


class Ledger:
    """The cells of one sweep and their runs in the store. Without `parent`, the earliest parent run is looked up.

    `work` is the identity from `identify_sweep`, whose facts are the runs' params; `half` is the target half.
    """

    def __init__(self, store: Store, work: Identity, half: Half, parent: Run | None = None):
        self._store, self._facts, self._key = store, work.facts, work.key
        self.n_train = cache(partial(n_train, half.train))
        parents = [parent] if parent else _parents(store, work)
        self.run_id = str(parents[-1].info.run_id) if parents else ""  # the earliest parent's; empty if there is none
        children = store.find(TRANSFER, role=Role.CELL, parent=self.run_id) if parents else []
        self._runs = counting_runs(children)
        self.open_runs = OpenRuns[Cell](store, TRANSFER, self.run_id, Role.CELL, half=half, half_role="target")
        if parent:
            self.open_runs.end_left(children)

    def cell_key(self, cell: Cell) -> str:
        """Key of a cell; percents that give the same number of images share it."""
        change = {"setting": list(cell.setting.values())} if cell.change else {}
        own = {"n_train": self.n_train(cell.percent), "init": cell.init, "replicate": cell.replicate}
        return identity(device=str(self._facts["device"]), sweep=self._key, **own, **change).key

    def rows(self, cells: Iterable[Cell]) -> list[Row]:
        return [row_of(cell, self.n_train(cell.percent), self._runs.get(self.cell_key(cell))) for cell in cells]

    def to_run(self, cells: Iterable[Cell], *, retry_failed: bool = False) -> list[Cell]:
        """List the cells to train: open and failed ones; diverged ones, which would fail again, if `retry_failed`."""

        def is_due(run: Run | None) -> bool:
            if run is None:
                return True
            has_diverged = run.data.tags.get("reason", "").startswith("Diverged")
            return run.info.status == "FAILED" and (retry_failed or not has_diverged)

        return [cell for cell in cells if is_due(self._runs.get(self.cell_key(cell)))]

    def hosts(self, rows: Iterable[Row]) -> list[str]:
        """Hosts that trained the finished cells, one entry per cell."""
        tags = {str(run.info.run_id): run.data.tags for run in self._runs.values()}
        finished = [tags[row.run_id] for row in rows if row.status == "finished"]
        return [own.get("trained_on", own.get("host", "unknown")) for own in finished]

    def begin(self, cell: Cell) -> None:
        labels = {"percent": f"{cell.percent:03d}", "init": cell.init, "replicate": cell.replicate}
        params = self._facts | labels | {"n_train": self.n_train(cell.percent)}
        params |= {f"recipe.{name}": value for name, value in cell.setting.items()}
        self.open_runs.begin(cell, cell.name, params, labels | {"cell_key": self.cell_key(cell)})

    def finish(self, cell: Cell, trained: CellResult) -> None:
        """Log all results in one batch, then end the run as FINISHED."""
        tags, metrics = {"weights_digest": trained.weights_digest} | trained.numerics, result_rows(trained.result)
        files = {IMAGE_SCORES_FILE: pack_image_scores(trained.result)}
        self._remember(cell, self.open_runs.end(cell, "FINISHED", metrics=metrics, tags=tags, files=files))

    def fail(self, cell: Cell, reason: str, details: str = "") -> None:
        self._remember(cell, self.open_runs.fail(cell, reason, details))

    def _remember(self, cell: Cell, run_id: str) -> None:
        """Make the ended run the cell's result. `run_id` is empty if the run was deleted meanwhile."""
        if run_id:
            self._runs[self.cell_key(cell)] = self._store.client.get_run(run_id)


def _parents(store: Store, work: Identity) -> list[Run]:
    """List the active parent runs of the sweep, newest first."""
    return store.find(TRANSFER, role=Role.SWEEP, sweep_key=work.key)


def open_ledger(
    store: Store, work: Identity, half: Half, name: str, tags: Mapping[str, Any], *, take_over: bool = False
) -> Ledger:
    """Make the sweep's parent RUNNING, creating it if there is none, and end cells that a dead driver left RUNNING.

    The caller holds the sweep's lock on this machine. Raises BusyError if another machine runs the sweep, unless
    `take_over`. `tags` of the parent are overwritten each time.
    """

    def start() -> str:
        return store.start(TRANSFER, name, params=work.facts, tags={"role": Role.SWEEP, "sweep_key": work.key})

    find = partial(_parents, store, work)
    parent = open_parent(store, "sweep", find=find, start=start, params=work.facts, take_over=take_over)
    store.log(parent.info.run_id, tags=tags)
    return Ledger(store, work, half, parent)


class CellLog:
    """A `TaskLog` for the cells of one command; each outcome's result is a `CellResult`."""

    def __init__(self, ledger: Ledger, epochs: int, stopwatch: Stopwatch, on_finished: Callable[[], object]):
        self._ledger, self._epochs, self._stopwatch, self._on_finished = ledger, epochs, stopwatch, on_finished

    def name(self, task: Cell) -> str:
        return task.name

    def begin(self, task: Cell) -> None:
        self._ledger.begin(task)

    def report(self, task: Cell, news: int) -> tuple[float, str]:
        self._stopwatch.mark(FIRST_STEP)
        n = self._epochs * traits(task.init).lengthens
        return news / n, f"{task.name}: epoch {news}/{n}"

    def end(self, outcome: Outcome[Cell, CellResult]) -> str | None:
        cell, trained = outcome.task, outcome.result
        if outcome.status == "interrupted":
            self._ledger.open_runs.kill(cell, outcome.reason)
            return None
        if trained is None:
            self._ledger.fail(cell, outcome.reason, outcome.details)
            note = ""
        else:
            self._ledger.finish(cell, trained)
            val = trained.result.final.val
            note = f"{cell.name}: validation loss {val.loss:.4f}, accuracy {val.accuracy:.2%}"
        self._on_finished()
        return note

    def close(self) -> None:
        self._ledger.open_runs.kill_rest()
