"""A study as MLflow runs: one parent for the study, one child for each finished trial, with its epoch curve."""

import socket
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.lease import Lease
from fmnist_transfer.store.metric_rows import curve_rows, settings_params
from fmnist_transfer.store.roles import TUNING, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.training.score import Epoch
from tuning.study.study import EPOCHS, HOST, REASON, finished, spec_and_recipe, storage_of

PARENT = "mlflow_run_id"  # user attribute of the study
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


class StudyLog:
    """Logs trials as they finish, and those that an earlier run of the command finished but could not log."""

    def __init__(self, store: Store, study: optuna.Study, params: dict[str, Any], half: Half):
        self._store, self._study, self._params, self._half = store, study, params, half
        self._logged: set[int] = set()
        self.run_id = self._find_parent() or self._create_parent()
        self.lease = Lease(store, self.run_id)

    def _find_parent(self) -> str:
        known = [run.info.run_id for run in self._store.find(TUNING, role=Role.STUDY, study=self._study.study_name)]
        run_id: str = self._study.user_attrs.get(PARENT, "")
        if run_id and run_id not in known and storage_of(self._study).is_shared:
            raise StoreError(
                f"study {self._study.study_name!r} is logged in another MLflow store than {masked(self._store.uri)}; "
                "give that one with --tracking-uri, or another --study-name"
            )
        return run_id if run_id in known else ""

    def _create_parent(self) -> str:
        tags = {"role": Role.STUDY, "study": self._study.study_name}
        run_id = self._store.start(TUNING, f"study {self._study.study_name}", params=self._params, tags=tags)
        with storage_of(self._study).lock():  # of several commands that create a parent, one has the last word
            if (found := self._find_parent()) == "":
                self._study.set_user_attr(PARENT, run_id)
        if found:
            self._store.client.delete_run(run_id)
        return found or run_id

    def open(self) -> None:
        """Make the parent RUNNING, and find what is logged; the caller owns the study."""
        store = self._store
        store.reopen(store.client.get_run(self.run_id), self._params)
        self._logged = set()
        for run in store.find(TUNING, role=Role.TRIAL, parent=self.run_id):
            if "complete" in run.data.tags:
                self._logged.add(int(run.data.tags["trial"]))
            if run.info.status == "RUNNING":  # its logging was cut off
                store.end(run.info.run_id, run.data.tags.get("complete", "KILLED"))

    def delete_ghosts(self) -> int:
        """Delete runs of trials that were not logged whole (they are logged again); how many."""
        runs = self._store.find(TUNING, role=Role.TRIAL, parent=self.run_id)
        ghosts = [run.info.run_id for run in runs if "complete" not in run.data.tags]
        for run_id in ghosts:
            self._store.client.delete_run(run_id)
        return len(ghosts)

    def check_owner(self) -> None:
        """Raise TakenOver if the study has another owner by now."""
        self.lease.check_owner(f"study {self._study.study_name!r}", "trials")

    def log_hosts(self) -> None:
        """On the parent, how many trials each host trained."""
        hosts = [trial.user_attrs.get(HOST, "unknown") for trial in finished(self._study)]
        self._store.log_hosts(self.run_id, hosts, "trials")

    def log_finished(self) -> None:
        """Log every finished trial that is not yet logged, in order of number. Raises TakenOver."""
        todo = [trial for trial in finished(self._study) if trial.number not in self._logged]
        if todo:
            self.check_owner()
        for trial in todo:
            self._log(trial)
            self._logged.add(trial.number)

    def _log(self, trial: FrozenTrial) -> None:
        epochs = [Epoch(**fields) for fields in trial.user_attrs.get(EPOCHS, [])]
        params = self._params | (settings_params(*spec_and_recipe(trial)) if "recipe" in trial.user_attrs else {})
        tags = {"role": Role.TRIAL, "trial": trial.number, "parent": self.run_id, "optuna.state": trial.state.name}
        if trial.state == TrialState.PRUNED:
            tags["optuna.pruned_step"] = len(epochs)
        tags |= {key: trial.user_attrs[key] for key in (REASON, HOST) if key in trial.user_attrs}
        name = f"trial {trial.number:03d}"
        is_here = trial.user_attrs.get(HOST, "") == socket.gethostname()  # another's clock may be of another time zone
        times = (trial.datetime_start, trial.datetime_complete) if is_here else (None, None)
        start_ms, end_ms = (int(at.timestamp() * 1_000) if at else None for at in times)
        run_id = self._store.start(TUNING, name, parent=self.run_id, params=params, tags=tags, start_ms=start_ms)
        self._store.log_data(run_id, self._half, "source")
        metrics = curve_rows(epochs)
        if trial.state == TrialState.COMPLETE:
            metrics.append(("val_accuracy", trial.value or 0.0, 0))
        if trial.duration:
            metrics.append(("seconds", trial.duration.total_seconds(), 0))
        scores = [t.value for t in finished(self._study) if t.number <= trial.number and t.state == TrialState.COMPLETE]
        if scores:
            self._store.log(self.run_id, metrics=[("best_value", max(score or 0.0 for score in scores), trial.number)])
        status = STATUS[trial.state]
        self._store.log(run_id, metrics=metrics, tags={"complete": status})  # a kill before the next line costs nothing
        self._store.end(run_id, status, end_ms)
