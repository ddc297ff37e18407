"""Ledger of a sweep's cells. A cell is done if a FINISHED run with its `cell_key` is below the sweep's parent.

The runs are listed once, when the ledger is made (under the sweep's lock); only the driver adds to them. Nothing is
written to the parent per cell.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fmnist_transfer.data.examples import Half
from fmnist_transfer.identity import Identity, identity
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.open_runs import OpenRuns, open_parent
from fmnist_transfer.store.roles import TRANSFER, Role, result_rows, settings_params
from fmnist_transfer.store.runs import Run, Store
from sweeps.grid import Cell
from sweeps.results.read import TUNED, counting_runs, diverged, row_of
from sweeps.rows import Row
from sweeps.training.cells import CellPlan, CellResult


def identify_sweep(model: TrainedModel, plan: CellPlan, *, tuned: bool = False, own_sources: bool = False) -> Identity:
    """Identify a sweep by all that a cell's result depends on, except fraction, init and replicate.

    Args:
        tuned: each init has its own recipe, which its cells then name.
        own_sources: each replicate has its own source network.
    """
    stacked = {"stacked": True} if plan.stack else {}  # rounds differently; on CUDA dropout masks differ, too
    modes = ({"recipe_mode": TUNED} if tuned else {}) | ({"sources": "one a replicate"} if own_sources else {})
    return identity(
        device=plan.device,
        weights_digest=weights_digest(model.state),
        split=str(model.split),
        budget=plan.budget,
        seed=plan.seed,
        data_sha256=plan.half.data_sha256,
        dtype=plan.precision,
        **settings_params(plan.spec, plan.recipe),
        **stacked,
        **modes,
    )


class Ledger:
    """The cells of one sweep, as the store has them. Call `open` before `begin`.

    Args:
        work: identity from `identify_sweep`; its facts are the parent's params.
        half: the target half, logged as the data of every run.
    """

    def __init__(self, store: Store, work: Identity, half: Half):
        self._store, self._half = store, half
        self._facts, self.key = work
        self._parent = next(reversed(self._parents()), None)  # the earliest
        self._runs: dict[str, Run] = {}  # cell key -> the run that counts
        self._children: list[Run] = []
        if self._parent:
            self._children = store.find(TRANSFER, role=Role.CELL, parent=self.run_id)
            self._runs = counting_runs(self._children)

    def _parents(self) -> list[Run]:
        return self._store.find(TRANSFER, role=Role.SWEEP, sweep_key=self.key)

    @property
    def run_id(self) -> str:
        """Id of the sweep's parent; empty if there is none yet."""
        return str(self._parent.info.run_id) if self._parent else ""

    def open(self, name: str, tags: Mapping[str, Any], *, take_over: bool = False) -> None:
        """Make the parent RUNNING, creating it if there is none, and end cells that a dead driver left RUNNING.

        The caller holds this machine's lock of the sweep. Raises BusyError if another machine runs the sweep.

        Args:
            tags: tags of the parent, overwritten each time (such as the model asked for).
            take_over: True if another machine's driver is known to be gone.
        """
        key = {"role": Role.SWEEP, "sweep_key": self.key}
        self._parent = open_parent(
            self._store,
            "sweep",
            find=self._parents,
            start=lambda: self._store.start(TRANSFER, name, params=self._facts, tags=key),
            params=self._facts,
            take_over=take_over,
        )
        self._store.log(self.run_id, tags=tags)
        self._open = OpenRuns[Cell](self._store, TRANSFER, self.run_id, Role.CELL, half=self._half, half_role="target")
        self._open.end_left(self._children)

    def cell_key(self, cell: Cell, n_train: int) -> str:
        """Key of a cell; percents that give the same number of images share it."""
        change = {"setting": dataclasses.astuple(cell.change)} if cell.change else {}
        own = {"sweep": self.key, "n_train": n_train, "init": cell.init, "replicate": cell.replicate}
        return identity(device=str(self._facts["device"]), **own, **change).key

    def row(self, cell: Cell, n_train: int) -> Row:
        """The cell's row, `open` if no run counts."""
        return row_of(cell, n_train, self._runs.get(self.cell_key(cell, n_train)))

    def rows(self, cells: Mapping[Cell, int]) -> list[Row]:
        """Rows of cells, given as cell -> number of training images."""
        return [self.row(cell, n_train) for cell, n_train in cells.items()]

    def to_run(self, cells: Mapping[Cell, int], *, retry_failed: bool = False) -> list[Cell]:
        """Open and failed cells; diverged ones, which would diverge again, only with `retry_failed`."""

        def is_to_run(cell: Cell, n_train: int) -> bool:
            run = self._runs.get(self.cell_key(cell, n_train))
            return run is None or (run.info.status == "FAILED" and (retry_failed or not diverged(run)))

        return [cell for cell, n_train in cells.items() if is_to_run(cell, n_train)]

    def hosts(self, rows: Iterable[Row]) -> list[str]:
        """The hosts that trained the finished cells, one entry per cell."""
        tags = {str(run.info.run_id): run.data.tags for run in self._runs.values()}
        finished = [tags[row.run_id] for row in rows if row.status == "finished"]
        return [own.get("trained_on", own.get("host", "unknown")) for own in finished]

    def begin(self, cell: Cell, n_train: int) -> None:
        labels = {"percent": f"{cell.percent:03d}", "init": cell.init, "replicate": cell.replicate}
        params = self._facts | labels | {"n_train": n_train}
        if cell.change:
            params |= {f"recipe.{key}": value for key, value in dataclasses.asdict(cell.change).items()}
        self._open.begin(cell, cell.name, params, labels | {"cell_key": self.cell_key(cell, n_train)})

    def finish(self, cell: Cell, n_train: int, trained: CellResult) -> None:
        """Log all results in one batch, then end the run as FINISHED."""
        tags = {"weights_digest": trained.weights_digest} | trained.numerics
        self._count(cell, n_train, self._open.end(cell, "FINISHED", metrics=result_rows(trained.result), tags=tags))

    def fail(self, cell: Cell, n_train: int, reason: str, details: str = "") -> None:
        self._count(cell, n_train, self._open.fail(cell, reason, details))

    def kill(self, cell: Cell, reason: str) -> None:
        """End the cell's run as KILLED; the cell stays open."""
        self._open.kill(cell, reason)

    def kill_rest(self) -> None:
        self._open.kill_rest()

    def _count(self, cell: Cell, n_train: int, run_id: str) -> None:
        if run_id:
            self._runs[self.cell_key(cell, n_train)] = self._store.client.get_run(run_id)
