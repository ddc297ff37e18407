"""Which cell is done, and what to redo: the sweep's parent run is its ledger.

A run's params are write-once, so a cell is claimed by creating its run and then logging param `cell.KEY.ATTEMPT` =
run id on the parent. Only the run that a cell's highest attempt names counts, and only if it is FINISHED, which is set
last. Everything is read back from the store; nothing else remembers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fmnist_transfer.data import Half
from fmnist_transfer.model import weights_digest
from fmnist_transfer.ownership import Owner, busy
from fmnist_transfer.registry import TrainedModel
from fmnist_transfer.spool import Ending
from fmnist_transfer.tracking import TRANSFER, Store, result_rows, settings_params
from fmnist_transfer.training import NUMERICS_VERSION
from sweeps.cells import CellPlan, CellResult
from sweeps.grid import Cell
from sweeps.logged import CELL_PARAM, TUNED, attempts_of, row_of
from sweeps.table import Row

if TYPE_CHECKING:
    from mlflow.entities import Run

DIVERGED = "Diverged"  # would diverge again, so it is not redone


def identity(model: TrainedModel, plan: CellPlan, *, tuned: bool = False, pretraining: bool = False) -> dict[str, Any]:
    """All that a cell's result depends on but its fraction, init and replicate.

    Args:
        tuned: whether each init has a recipe of its own, which the cells then say.
        pretraining: whether each replicate has a source network of its own.
    """
    stacked = {"stacked": True} if plan.stack else {}  # other roundings; on CUDA other dropout masks, too
    modes = ({"recipe_mode": TUNED} if tuned else {}) | ({"sources": "one a replicate"} if pretraining else {})
    return settings_params(plan.spec, plan.recipe) | {
        "weights_digest": weights_digest(model.state),
        "split": str(model.split),
        "budget": plan.budget,
        "seed": plan.seed,
        "data_sha256": plan.half.data_sha256,
        "device": torch.device(plan.device).type,
        "dtype": plan.precision,
        "threads": 1,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "numerics_version": NUMERICS_VERSION,
        **stacked,
        **modes,
    }


def identity_key(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal for equal contents in any order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """The ledger of one sweep, as the store has it; `open` before anything is claimed.

    Args:
        identity: all that a cell's result depends on but fraction, init and replicate; the params of the parent.
        half: the target half, which every run names as its data.
    """

    def __init__(self, store: Store, identity: Mapping[str, Any], half: Half):
        self._store, self._half = store, half
        self._identity = dict(identity)
        self.key = identity_key(identity)
        self.run_id = ""
        """Of the sweep's parent; empty if there is none yet."""
        self._attempts: dict[str, tuple[int, str]] = {}  # cell key -> its highest attempt and the run that this names
        self._named: set[str] = set()  # runs of all attempts
        self._runs: dict[str, Run] = {}
        parents = store.find(TRANSFER, role="sweep", sweep_key=self.key)
        if parents:
            self._parent = parents[-1]
            self.run_id = str(self._parent.info.run_id)
            self._read()

    def _read(self) -> None:
        parent = self._store.client.get_run(self.run_id)
        self._attempts = attempts_of(parent)
        self._named = {run_id for param, run_id in parent.data.params.items() if param.startswith(CELL_PARAM)}
        cells = self._store.find(TRANSFER, role="cell", parent=self.run_id)
        self._runs = {str(run.info.run_id): run for run in cells}

    def open(self, name: str, tags: Mapping[str, Any]) -> None:
        """Make the parent RUNNING, or create it; the caller owns the sweep, so cells that still are RUNNING died.

        Args:
            name: of the parent where it has to be created.
            tags: of the parent, set anew each time (which model was asked for).

        Raises BusyError if the parent belongs to a process of another machine.
        """
        if not self.run_id:
            all_tags = {"role": "sweep", "sweep_key": self.key} | dict(tags)
            self.run_id = self._store.start(TRANSFER, name, params=self._identity, tags=all_tags)
            return
        self._store.reopen(self._parent, "sweep", self._identity)
        self._store.log(self.run_id, tags=tags)
        for run_id, run in self._runs.items():
            if run.info.status == "RUNNING":
                self.interrupt(run_id, "its process died")

    def delete_ghosts(self) -> int:
        """Delete runs of cells that no attempt names (whoever created them died before it said so); how many."""
        ghosts = [run_id for run_id in self._runs if run_id not in self._named]
        for run_id in ghosts:
            self._store.client.delete_run(run_id)
            del self._runs[run_id]
        return len(ghosts)

    def cell_key(self, cell: Cell, n_train: int) -> str:
        """The images count, not the percent they were written as."""
        what = {"sweep": self.key, "n_train": n_train, "init": cell.init, "replicate": cell.replicate}
        return identity_key(what | ({"setting": dataclasses.astuple(cell.setting)} if cell.setting else {}))

    def row(self, cell: Cell, n_train: int) -> Row:
        """What the ledger knows of the cell; status `open` if no attempt came to an end of its own."""
        _, run_id = self._attempts.get(self.cell_key(cell, n_train), (0, ""))
        return row_of(cell, n_train, self._runs.get(run_id))

    def to_run(self, cells: Mapping[Cell, int], *, retry_failed: bool = False) -> list[Cell]:
        """Cells that are open, or failed in a way that another attempt may not (or are to be tried all the same)."""

        def is_to_run(row: Row) -> bool:
            if row.status == "failed":
                return retry_failed or not self._runs[row.run_id].data.tags.get("reason", "").startswith(DIVERGED)
            return row.status == "open"

        return [row.cell for row in self.rows(cells) if is_to_run(row)]

    def rows(self, cells: Mapping[Cell, int]) -> list[Row]:
        return [self.row(cell, n_train) for cell, n_train in cells.items()]

    def claim(self, cell: Cell, n_train: int) -> str:
        """Create the cell's run and name it in the ledger; the run's id."""
        key = self.cell_key(cell, n_train)
        attempt = self._attempts.get(key, (0, ""))[0] + 1
        labels = {"percent": cell.percent, "init": cell.init, "replicate": cell.replicate}
        params = self._identity | labels | {"n_train": n_train}
        if cell.setting:
            params |= {f"recipe.{key}": value for key, value in dataclasses.asdict(cell.setting).items()}
        tags = labels | {"role": "cell", "parent": self.run_id, "cell_key": key, "attempt": attempt}
        run_id = self._store.start(TRANSFER, cell.name, parent=self.run_id, params=params, tags=tags)
        winner = self._store.log_once(self.run_id, f"{CELL_PARAM}{key}.{attempt}", run_id)
        if winner != run_id:
            self._store.client.delete_run(run_id)
            raise busy("sweep", Owner.from_tags(self._store.client.get_run(winner).data.tags))
        self._store.log_data(run_id, self._half, "target")
        self._attempts[key] = (attempt, run_id)
        self._named.add(run_id)
        return run_id

    def finish(self, run_id: str, trained: CellResult) -> None:
        """Log every result in one batch, then FINISHED."""
        tags = {"weights_digest": trained.weights_digest} | trained.numerics
        self._conclude(Ending(run_id, "FINISHED", result_rows(trained.result), tags))

    def fail(self, run_id: str, reason: str, details: str = "") -> None:
        """End the run FAILED, with the reason as a tag and the traceback as an artifact."""
        files = {"traceback.txt": details.encode()} if details else {}
        self._conclude(Ending(run_id, "FAILED", tags={"reason": reason}, files=files))

    def interrupt(self, run_id: str, reason: str) -> None:
        """End the run KILLED: another attempt is to be made."""
        self._conclude(Ending(run_id, "KILLED", tags={"reason": reason}))

    def _conclude(self, ending: Ending) -> None:
        self._store.conclude(ending)
        self._runs[ending.run_id] = self._store.client.get_run(ending.run_id)
