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
from fmnist_transfer.training.score import Epoch, pack_image_scores
from fmnist_transfer.workers.task import Outcome
from sweeps.grid import TUNING_REPLICATE, Cell, traits
from sweeps.results.read import TUNED, counting_runs, row_of
from sweeps.rows import Row
from sweeps.settings import TransferSettings
from sweeps.training.cells import CellPlan, CellResult


def identify_sweep(model: TrainedModel, plan: CellPlan, settings: TransferSettings) -> Identity:
    """Identify a sweep by all that a cell's result depends on, except fraction, init, replicate and tuned setting."""
    facts = settings_params(plan.spec, plan.recipe)
    facts |= {"weights_digest": weights_digest(model.state), "split": str(model.split), "budget": plan.budget}
    facts |= {"seed": plan.seed, "data_sha256": plan.half.data_sha256, "dtype": plan.precision}
    if plan.stack:
        facts["stacked"] = True  # rounds differently; on CUDA dropout masks differ, too
    if settings.recipe == "tuned":
        facts["recipe_mode"] = TUNED
    if settings.pretrain_replicates:
        facts["sources"] = "one a replicate"  # part of the key: do not reword
    return identity(device=plan.device, **facts)


class Ledger:
    """The cells of one sweep on its target half, and their runs; a `TaskLog`. `work` is from `identify_sweep`."""

    def __init__(self, store: Store, work: Identity, half: Half, parent: Run | None = None):
        self._store, self._facts, self._key = store, work.facts, work.key
        self.n_train = cache(partial(n_train, half.train))
        # These are called at each report, and after each compared cell that was logged, failures included.
        self.on_report: Callable[[], object] = lambda: None
        self.on_end: Callable[[], object] = lambda: None
        parents = [parent] if parent else store.find(TRANSFER, role=Role.SWEEP, sweep_key=work.key)
        self.run_id = str(parents[-1].info.run_id) if parents else ""  # the earliest parent's, if there is one
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
        reasons = {str(run.info.run_id): run.data.tags.get("reason", "") for run in self._runs.values()}
        diverged = {run_id for run_id, reason in reasons.items() if reason.startswith("Diverged") and not retry_failed}
        return [row.cell for row in self.rows(cells) if row.status != "finished" and row.run_id not in diverged]

    def name(self, task: Cell) -> str:
        return task.name

    def begin(self, task: Cell) -> None:
        params = self._facts | task.labels | {"n_train": self.n_train(task.percent)}
        params |= {f"recipe.{name}": value for name, value in task.setting.items()}
        self.open_runs.begin(task, task.name, params, task.labels | {"cell_key": self.cell_key(task)})

    def report(self, task: Cell, news: Epoch | int) -> tuple[float, str]:
        self.on_report()
        number, n = news if isinstance(news, int) else news.epoch, self._facts["recipe.epochs"]
        n *= traits(task.init).lengthens
        return number / n, f"{task.name}: epoch {number}/{n}"

    def end(self, outcome: Outcome[Cell, CellResult]) -> str | None:
        """Log all results in one batch and end the run as FINISHED; or log the failure, or the interruption."""
        cell, trained = outcome.task, outcome.result
        if outcome.status == "interrupted":
            self.open_runs.end(cell, "KILLED", tags={"reason": outcome.reason})
            return None
        note = ""
        if trained is None:
            self.fail(cell, outcome.reason, outcome.details)
        else:
            tags, metrics = {"weights_digest": trained.weights_digest} | trained.numerics, result_rows(trained.result)
            metrics += [(f"source/{name}", value, 0) for name, value in trained.source_accuracies.items()]
            files = {IMAGE_SCORES_FILE: pack_image_scores(trained.result)}
            self._remember(cell, self.open_runs.end(cell, "FINISHED", metrics=metrics, tags=tags, files=files))
            val = trained.result.val
            note = f"{cell.name}: validation loss {val.loss:.4f}, accuracy {val.accuracy:.2%}"
        if cell.replicate < TUNING_REPLICATE:
            self.on_end()
        return note

    def fail(self, cell: Cell, reason: str, details: str = "") -> None:
        self._remember(cell, self.open_runs.fail(cell, reason, details))

    def close(self) -> None:
        self.open_runs.kill_rest()

    def _remember(self, cell: Cell, run_id: str) -> None:
        """Make the ended run the cell's result. `run_id` is empty if the run was deleted meanwhile."""
        if run_id:
            self._runs[self.cell_key(cell)] = self._store.client.get_run(run_id)


def open_ledger(
    store: Store, work: Identity, half: Half, name: str, tags: Mapping[str, Any], *, take_over: bool = False
) -> Ledger:
    """Make the sweep's parent RUNNING, with these tags, and end cells that a dead driver left RUNNING.

    The caller holds the sweep's lock. Raises BusyError if another machine runs the sweep, unless `take_over`.
    """
    facts, own = work.facts, {"role": Role.SWEEP, "sweep_key": work.key}
    start = partial(store.start, TRANSFER, name, params=facts, tags=own)
    find = partial(store.find, TRANSFER, **own)
    parent = open_parent(store, "sweep", find=find, start=start, params=facts, take_over=take_over)
    store.log(parent.info.run_id, tags=tags)
    return Ledger(store, work, half, parent)
