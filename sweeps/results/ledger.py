"""Which cell is done, and what to redo: the sweep's parent run is its ledger.

A run's params are write-once, so a cell is claimed by creating its run and then logging param `cell.KEY.ATTEMPT` =
run id on the parent. Only the run that a cell's highest attempt names counts, and only if it is FINISHED, which is set
last. Everything is read back from the store; nothing else remembers.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import TakenOver
from fmnist_transfer.identity import Identity, identity
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.lease import Lease
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.metric_rows import result_rows, settings_params
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.pending_results import PendingResult
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Run, Store
from sweeps.grid import Cell
from sweeps.results.read import CELL_PARAM, TUNED, attempts_of, row_of
from sweeps.rows import Row
from sweeps.training.cells import CellPlan, CellResult

DIVERGED = "Diverged"  # would diverge again, so it is not redone
SWEEP_PARAM = "sweep."  # of the model's run: sweep.KEY.N = id of the sweep's parent


def identify_sweep(model: TrainedModel, plan: CellPlan, *, tuned: bool = False, own_sources: bool = False) -> Identity:
    """Everything that a cell's result depends on besides its fraction, init and replicate.

    Args:
        tuned: each init has a recipe of its own, which the cells then name.
        own_sources: each replicate has a source network of its own.
    """
    stacked = {"stacked": True} if plan.stack else {}  # rounds otherwise; on CUDA dropout masks differ, too
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
    """The ledger of one sweep, as the store has it; `open` before anything is claimed.

    Args:
        work: all that a cell's result depends on but fraction, init and replicate; its facts are the parent's params.
        half: the target half, which every run names as its data.
    """

    def __init__(self, store: Store, work: Identity, half: Half):
        self._store, self._half = store, half
        self._facts, self.key = work
        self.run_id = ""
        """Of the sweep's parent; empty if there is none yet."""
        self._attempts: dict[str, tuple[int, str]] = {}  # cell key -> its highest attempt and the run that this names
        self._named: set[str] = set()  # runs of all attempts
        self._runs: dict[str, Run] = {}
        self._living: set[str] = set()  # RUNNING ones of other processes that are not known to be dead
        parents = store.find(TRANSFER, role=Role.SWEEP, sweep_key=self.key)
        if parents:
            self._use(str(parents[-1].info.run_id))
            self.refresh()

    def _use(self, run_id: str) -> None:
        self.run_id = run_id
        self.lease = Lease(self._store, run_id)

    def refresh(self) -> None:
        """Read everything anew; call it before each look at what other processes do."""
        parent = self._store.client.get_run(self.run_id)
        self._attempts = attempts_of(parent)
        self._named = {run_id for param, run_id in parent.data.params.items() if param.startswith(CELL_PARAM)}
        cells = self._store.find(TRANSFER, role=Role.CELL, parent=self.run_id)
        self._runs = {str(run.info.run_id): run for run in cells}
        running = [run for run in cells if run.info.status == "RUNNING"]
        self._living = {str(run.info.run_id) for run in running if self._lives(run, parent)}

    def _lives(self, run: Run, parent: Run) -> bool:
        owner = Owner.from_tags(run.data.tags)
        return owner != Owner.this_process() and not self.lease.is_dead(owner, parent.data.tags)

    def create(self, name: str, tags: Mapping[str, Any], model_run_id: str = "") -> None:
        """Create the parent, if there is none yet.

        Args:
            model_run_id: a run that every process with this sweep knows: its params say whose parent counts.
        """
        registrar = model_run_id if model_run_id and self._store.is_active(model_run_id) else ""
        n, mine = 1, self.run_id
        while True:
            if not mine:
                all_tags = {"role": Role.SWEEP, "sweep_key": self.key} | dict(tags)
                mine = self._store.start(TRANSFER, name, params=self._facts, tags=all_tags)
            winner = self._store.log_once(registrar, f"{SWEEP_PARAM}{self.key}.{n}", mine) if registrar else mine
            if self._store.is_active(winner):
                break
            n += 1  # that sweep was deleted
        if mine not in (winner, self.run_id):
            self._store.client.delete_run(mine)
        if winner != self.run_id:
            self._use(winner)
            self.refresh()

    def open(self, tags: Mapping[str, Any]) -> None:
        """Make the parent RUNNING, and end the cells of processes that died; the caller owns the sweep.

        Args:
            tags: of the parent, set anew each time (which model was asked for).
        """
        self._store.reopen(self._store.client.get_run(self.run_id), self._facts)
        self._store.log(self.run_id, tags=tags)
        self.end_dead()

    def end_dead(self) -> None:
        """End the cells whose processes died."""
        for run_id, run in self._runs.items():
            if run.info.status == "RUNNING" and run_id not in self._living:
                self.interrupt(run_id, "its process died")

    def delete_ghosts(self) -> int:
        """Delete runs of cells that no attempt names (whoever created them died before it said so); how many."""
        ghosts = [run_id for run_id in self._runs if run_id not in self._named | self._living]
        for run_id in ghosts:
            self._store.client.delete_run(run_id)
            del self._runs[run_id]
        return len(ghosts)

    def cell_key(self, cell: Cell, n_train: int) -> str:
        """The images count, not the percent they were written as."""
        change = {"setting": dataclasses.astuple(cell.change)} if cell.change else {}
        device = str(self._facts["device"])
        own = identity(
            device=device, sweep=self.key, n_train=n_train, init=cell.init, replicate=cell.replicate, **change
        )
        return own.key

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

    def hosts(self, rows: Iterable[Row]) -> list[str]:
        """Who trained the finished cells, one name for each."""
        finished = [self._runs[row.run_id].data.tags for row in rows if row.status == "finished"]
        return [tags.get("trained_on", tags.get("host", "unknown")) for tags in finished]

    def claim(self, cell: Cell, n_train: int) -> str | None:
        """Create the cell's run and name it in the ledger; the run's id, or None if another process has the cell.

        Another process may have finished it since the last `refresh`.
        """
        key = self.cell_key(cell, n_train)
        while True:
            attempt, _ = self._attempts.get(key, (0, ""))
            if self.is_anothers(cell, n_train) or self.row(cell, n_train).status == "finished":
                return None
            attempt += 1
            mine = self._create(cell, n_train, key, attempt)
            winner = self._store.log_once(self.run_id, f"{CELL_PARAM}{key}.{attempt}", mine)
            self._attempts[key] = (attempt, winner)
            self._named.add(winner)
            if winner == mine:
                self._store.log_data(mine, self._half, "target")
                return mine
            self._store.client.delete_run(mine)
            self._runs[winner] = self._store.client.get_run(winner)
            if self._runs[winner].info.status == "RUNNING":
                self._living.add(winner)  # as far as is known: it has just begun
            elif self._runs[winner].info.status == "FAILED":
                return None

    def is_anothers(self, cell: Cell, n_train: int) -> bool:
        """Whether another process was at it, at the last `refresh`."""
        return self._attempts.get(self.cell_key(cell, n_train), (0, ""))[1] in self._living

    def _create(self, cell: Cell, n_train: int, key: str, attempt: int) -> str:
        """A run for an attempt at the cell."""
        labels = {"percent": f"{cell.percent:03d}", "init": cell.init, "replicate": cell.replicate}
        params = self._facts | labels | {"n_train": n_train}
        if cell.change:
            params |= {f"recipe.{key}": value for key, value in dataclasses.asdict(cell.change).items()}
        tags = labels | {"role": Role.CELL, "parent": self.run_id, "cell_key": key, "attempt": attempt}
        return self._store.start(TRANSFER, cell.name, parent=self.run_id, params=params, tags=tags)

    def finish(self, run_id: str, trained: CellResult) -> bool:
        """Log every result in one batch, then FINISHED; False if another process has taken the cell over."""
        tags = {"weights_digest": trained.weights_digest} | trained.numerics
        return self._conclude(PendingResult(run_id, "FINISHED", result_rows(trained.result), tags))

    def fail(self, run_id: str, reason: str, details: str = "") -> None:
        """End the run FAILED, with the reason as a tag and the traceback as an artifact."""
        files = {"traceback.txt": details.encode()} if details else {}
        self._conclude(PendingResult(run_id, "FAILED", tags={"reason": reason}, files=files))

    def interrupt(self, run_id: str, reason: str) -> None:
        """End the run KILLED: another attempt is to be made."""
        self._conclude(PendingResult(run_id, "KILLED", tags={"reason": reason}))

    def _conclude(self, ending: PendingResult) -> bool:
        is_taken_over = False
        try:
            self._store.conclude(ending)
        except TakenOver:
            is_taken_over = True
        self._runs[ending.run_id] = self._store.client.get_run(ending.run_id)
        return not is_taken_over
