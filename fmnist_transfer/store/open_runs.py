"""Track a command's open runs below a parent. If the store is lost, the next command ends them."""

import contextlib
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlflow.exceptions import MlflowException

from fmnist_transfer.data.examples import Half
from fmnist_transfer.store.metric_rows import MetricRow
from fmnist_transfer.store.roles import Role
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import warn

Key = TypeVar("Key", bound=Hashable)


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
        """Create a RUNNING run."""
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
        """Log the rest, `files` by name, then end the run; return its id, empty if it never began or was deleted."""
        if (run_id := self._open.pop(key, "")) == "":
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
