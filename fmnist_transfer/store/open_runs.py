"""Runs that a driver keeps open: the parent of a sweep or a search, and those of its tasks.

Where machines share a store, the parent's tags refuse a second driver, unless both reopen it in the same second.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlflow.exceptions import MlflowException

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner, busy
from fmnist_transfer.store.roles import MetricRow, Role
from fmnist_transfer.store.runs import Run, Status, Store, Tags
from fmnist_transfer.terminal.output import warn

Key = TypeVar("Key", bound=Hashable)
GIVE_WAY_SECONDS = 10.0  # within this time a later starter has seen this run and withdrawn
Runs = Callable[[], Sequence[Run]]
Files = Mapping[str, bytes] | None  # name -> content


def open_parent(
    store: Store, noun: str, *, find: Runs, start: Callable[[], str], params: Mapping[str, Any], take_over: bool
) -> Run:
    """Make the parent run RUNNING with this process as its driver, and return it. The caller holds `locked`.

    `find` returns the active parents of this work, of which the earliest counts, and `start` starts one. A reopened
    one gets missing `params`. Raises BusyError if a driver on another machine has it, unless that is known to be gone
    (`take_over`), or starts it at the same moment.
    """

    def earliest_first() -> list[Run]:
        return sorted(find(), key=lambda run: (run.info.start_time, run.info.run_id))

    if parents := earliest_first():
        check_owner(store.is_shared, parents[0], noun, take_over=take_over)
        store.reopen(parents[0], params)
        return parents[0]
    run_id = start()
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    # Each driver looks after it has started its own parent, so at most one driver sees its parent alone.
    while len(parents := earliest_first()) > 1:
        if parents[0].info.run_id != run_id or time.monotonic() > deadline:
            store.client.delete_run(run_id)
            theirs = next(run.info.run_id for run in parents if run.info.run_id != run_id)
            raise BusyError(f"another machine started this {noun} at the same moment: run {theirs}")
        time.sleep(0.5)
    return store.client.get_run(run_id)


def check_owner(is_shared: bool, run: Run, noun: str, *, take_over: bool) -> None:
    """Raise BusyError if another driver may be working on the parent run. The caller holds `locked`."""
    # If only this machine uses the store, that lock suffices: a RUNNING run belongs to a dead driver.
    owner = Owner.from_tags(run.data.tags)
    if not is_shared or run.info.status != "RUNNING" or owner == Owner.this_process() or owner.is_dead():
        return
    if owner.is_of_this_machine():
        raise busy(noun, str(owner))
    if not take_over:
        remedy = "Wait for it or stop it; finished work is kept. If that machine is gone for good, add --take-over"
        raise BusyError(f"this {noun} is being run on another machine ({owner}). {remedy}")


class OpenRuns(Generic[Key]):
    """Runs of one role below the run `parent`, each identified by a `Key` and with `half` as its data."""

    def __init__(self, store: Store, experiment: str, parent: str, role: Role, *, half: Half, half_role: str):
        self._store, self._experiment, self._parent, self._role = store, experiment, parent, role
        self._half, self._half_role = half, half_role
        self._open: dict[Key, str] = {}

    def end_left(self, runs: Iterable[Run]) -> None:
        """End the RUNNING ones among `runs` as KILLED: a dead driver left them. The caller holds the parent's lock."""
        for run in runs:
            if run.info.status == "RUNNING":
                self._store.end(run.info.run_id, "KILLED")

    def begin(self, key: Key, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        tags = {"role": self._role, "parent": self._parent, **tags}
        self._open[key] = self._store.start(self._experiment, name, parent=self._parent, params=params, tags=tags)
        self._store.log_data(self._open[key], self._half, self._half_role)

    def end(
        self, key: Key, status: Status, *, metrics: Sequence[MetricRow] = (), tags: Tags = None, files: Files = None
    ) -> str:
        """Log the rest and end the run. Returns its id; empty if never begun, or deleted."""
        if not (run_id := self._open.pop(key, "")):
            return ""
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in (files or {}).items():
                    file = Path(folder) / name
                    file.write_bytes(content)
                    self._store.client.log_artifact(run_id, str(file))
            self._store.log(run_id, metrics=metrics, tags=tags)
            self._store.end(run_id, status)
        except MlflowException:
            if (run := self._store.get(run_id)) and run.info.lifecycle_stage == "active":
                raise
            warn(f"run {run_id} was deleted during its training; run the same command to train it again")
            return ""
        return run_id

    def fail(self, key: Key, reason: str, details: str = "") -> str:
        """End the run FAILED, with the reason as a tag and `details` as artifact `traceback.txt`."""
        files = {"traceback.txt": details.encode()} if details else {}
        return self.end(key, "FAILED", tags={"reason": reason}, files=files)

    def kill(self, key: Key, reason: str) -> None:
        """End the run KILLED; a later command trains its task again."""
        self.end(key, "KILLED", tags={"reason": reason})

    def kill_rest(self) -> None:
        """End all open runs as KILLED. Errors are suppressed so as not to hide an earlier one."""
        for key in list(self._open):
            with contextlib.suppress(Exception):
                self.kill(key, "the command ended before it")
