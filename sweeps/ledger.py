"""Which cell is done, and what to redo: the sweep's parent run is its ledger.

A run's params are write-once, so a cell is claimed by creating its run and then logging param `cell.KEY.ATTEMPT` =
run id on the parent. Only the run that a cell's highest attempt names counts, and only if it is FINISHED, which is set
last. Everything is read back from the store; nothing else remembers.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import torch

from fmnist_transfer.data import Half
from fmnist_transfer.model import weights_digest
from fmnist_transfer.registry import TrainedModel
from fmnist_transfer.tracking import TRANSFER, Store, curve_rows, score_rows, settings_params
from fmnist_transfer.training import Result
from sweeps.cells import CellPlan
from sweeps.grid import Cell, Init
from sweeps.table import GROUPS, Row, Status

NUMERICS_VERSION = 3  # by hand, when results may change: cells of before are then not reused
DIVERGED = "Diverged"  # would diverge again, so it is not redone
REASON_LENGTH = 5_000  # characters; MLflow's tags hold that many


def identity(model: TrainedModel, plan: CellPlan) -> dict[str, Any]:
    """All that a cell's result depends on but its fraction, init and replicate."""
    stacked = {"stacked": True} if plan.stack else {}  # other roundings; on CUDA other dropout masks, too
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
    }


def identity_key(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal for equal contents in any order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """The ledger of one sweep. The caller owns the sweep, so runs that still count as RUNNING died.

    Args:
        identity: all that a cell's result depends on but fraction, init and replicate; the params of the parent.
        name: of the parent run where it has to be created.
        half: the target half, which every run names as its data.
        tags: of the parent, set anew each time (which model was asked for).
    """

    def __init__(self, store: Store, identity: Mapping[str, Any], half: Half, *, name: str, tags: Mapping[str, Any]):
        self._store, self._half = store, half
        self._identity = dict(identity)
        self.key = identity_key(identity)
        parents = store.find(TRANSFER, role="sweep", sweep_key=self.key)
        if parents:
            self.run_id = str(parents[-1].info.run_id)
            store.reopen(self.run_id)
            store.log(self.run_id, tags=tags)
        else:
            all_tags = {"role": "sweep", "sweep_key": self.key} | dict(tags)
            self.run_id = store.start(TRANSFER, name, params=identity, tags=all_tags)
        self._attempts = self._read_attempts()
        self._runs = {str(run.info.run_id): run for run in store.find(TRANSFER, role="cell", parent=self.run_id)}
        for run_id, run in self._runs.items():
            if run.info.status == "RUNNING":
                store.end(run_id, "KILLED")

    def _read_attempts(self) -> dict[str, tuple[int, str]]:
        """Cell key -> its highest attempt and the run that this names."""
        attempts: dict[str, tuple[int, str]] = {}
        for param, run_id in self._store.client.get_run(self.run_id).data.params.items():
            if param.startswith("cell."):
                _, cell_key, number = param.split(".")
                attempts[cell_key] = max(attempts.get(cell_key, (0, "")), (int(number), run_id))
        return attempts

    def cell_key(self, cell: Cell, n_train: int) -> str:
        """The images count, not the percent they were written as."""
        what = {"sweep": self.key, "n_train": n_train, "init": cell.init, "replicate": cell.replicate}
        return identity_key(what)

    def row(self, cell: Cell, n_train: int) -> Row:
        """What the ledger knows of the cell; status `open` if no attempt came to an end of its own."""
        _, run_id = self._attempts.get(self.cell_key(cell, n_train), (0, ""))
        run = self._runs.get(run_id)
        status: Status = "open"
        if run is not None and run.info.status == "FINISHED":
            status = "finished"
        elif run is not None and run.info.status == "FAILED":
            status = "failed"
        scores = run.data.metrics if run is not None and status == "finished" else {}
        return Row(cell, n_train, run_id, status, {key: scores[key] for key in scores if key.split("/")[0] in GROUPS})

    def known(self) -> dict[Cell, int]:
        """Every cell that was ever claimed, with its number of training images."""
        cells = {}
        for _, run_id in self._attempts.values():
            if run_id in self._runs and "n_train" in self._runs[run_id].data.params:
                params = self._runs[run_id].data.params
                cell = Cell(int(params["percent"]), cast(Init, params["init"]), int(params["replicate"]))
                cells[cell] = int(params["n_train"])
        return cells

    def is_to_run(self, cell: Cell, n_train: int) -> bool:
        """Whether the cell is open, or failed in a way that another attempt may not."""
        row = self.row(cell, n_train)
        if row.status == "failed":
            return not self._runs[row.run_id].data.tags.get("reason", "").startswith(DIVERGED)
        return row.status == "open"

    def rows(self, cells: Mapping[Cell, int]) -> list[Row]:
        return [self.row(cell, n_train) for cell, n_train in cells.items()]

    def claim(self, cell: Cell, n_train: int) -> str:
        """Create the cell's run and name it in the ledger; the run's id."""
        key = self.cell_key(cell, n_train)
        attempt = self._attempts.get(key, (0, ""))[0] + 1
        labels = {"percent": cell.percent, "init": cell.init, "replicate": cell.replicate}
        params = self._identity | labels | {"n_train": n_train}
        tags = labels | {"role": "cell", "parent": self.run_id, "cell_key": key, "attempt": attempt}
        run_id = self._store.start(TRANSFER, cell.name, parent=self.run_id, params=params, tags=tags)
        self._store.log(self.run_id, params={f"cell.{key}.{attempt}": run_id})
        self._store.log_data(run_id, self._half, "target")
        self._attempts[key] = (attempt, run_id)
        return run_id

    def finish(self, run_id: str, result: Result, weights_digest: str) -> None:
        """Log every result in one batch, then FINISHED."""
        cost = [(f"cost/{key}", seconds, 0) for key, seconds in result.cost().items()]
        rows = [*curve_rows(result.epochs), *score_rows(result), *cost]
        self._store.log(run_id, metrics=rows, tags={"weights_digest": weights_digest})
        self._end(run_id, "FINISHED")

    def fail(self, run_id: str, reason: str, details: str = "") -> None:
        """End the run FAILED, with the reason as a tag and the traceback as an artifact."""
        self._store.log(run_id, tags={"reason": reason[:REASON_LENGTH]})
        if details:
            self._store.log_text(run_id, "traceback.txt", details)
        self._end(run_id, "FAILED")

    def interrupt(self, run_id: str, reason: str) -> None:
        """End the run KILLED: another attempt is to be made."""
        self._store.log(run_id, tags={"reason": reason[:REASON_LENGTH]})
        self._end(run_id, "KILLED")

    def _end(self, run_id: str, status: str) -> None:
        self._store.end(run_id, status)
        self._runs[run_id] = self._store.client.get_run(run_id)
