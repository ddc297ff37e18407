"""The runs below one parent that a command has begun and not yet ended. A lost store's, the next command ends."""

import contextlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mlflow.exceptions import MlflowException

from fmnist_transfer.data.examples import Half
from fmnist_transfer.store.metric_rows import MetricRow
from fmnist_transfer.store.roles import Role
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import warn

Key = TypeVar("Key", bound=Hashable)


class OpenRuns(Generic[Key]):
    """Runs of one role below the run `parent`; `Key` is what a run stands for.

    Args:
        half: which every run names as its data; `half_role` is `source` or `target`.
    """

    def __init__(self, store: Store, experiment: str, parent: str, role: Role, *, half: Half, half_role: str):
        self._store, self._experiment, self._parent, self._role = store, experiment, parent, role
        self._half, self._half_role = half, half_role
        self._open: dict[Key, str] = {}

    def end_left(self, runs: Iterable[Run]) -> None:
        """End as KILLED those of these runs that a dead driver left RUNNING. The caller holds the parent's lock."""
        for run in runs:
            if run.info.status == "RUNNING":
                self._store.end(run.info.run_id, "KILLED")

    def begin(self, key: Key, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Create the run, RUNNING."""
        all_tags = {"role": self._role, "parent": self._parent} | dict(tags)
        run_id = self._store.start(self._experiment, name, parent=self._parent, params=params, tags=all_tags)
        self._open[key] = run_id
        self._store.log_data(run_id, self._half, self._half_role)

    def end(
        self,
        key: Key,
        status: Status,
        *,
        metrics: Sequence[MetricRow] = (),
        tags: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Log the rest and end the run. Returns its id; empty if it never began, or if it was deleted meanwhile."""
        if (run_id := self._open.pop(key, "")) == "":
            return ""
        try:
            self._store.finish(run_id, status, metrics=metrics, tags=tags, files=files)
        except MlflowException:
            if self._store.is_active(run_id):
                raise
            warn(f"run {run_id} was deleted while it was trained; the same command trains it again")
            return ""
        return run_id

    def fail(self, key: Key, reason: str, details: str = "") -> str:
        """End the run FAILED, with the reason as a tag and the traceback as an artifact."""
        files = {"traceback.txt": details.encode()} if details else {}
        return self.end(key, "FAILED", tags={"reason": reason}, files=files)

    def kill(self, key: Key, reason: str) -> None:
        """End the run KILLED: its task is to be done again."""
        self.end(key, "KILLED", tags={"reason": reason})

    def kill_rest(self) -> None:
        """End what is still open as KILLED; errors are suppressed, since one that went before is the one to see."""
        for key in list(self._open):
            with contextlib.suppress(Exception):
                self.kill(key, "the command ended before it")
