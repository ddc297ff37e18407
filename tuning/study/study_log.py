"""Log a study to MLflow: one parent run, and a child run with the epoch curve per finished trial."""

from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.open_runs import open_parent
from fmnist_transfer.store.roles import TUNING, Role, curve_rows, settings_params
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.training.score import Epoch
from tuning.study.study import EPOCHS, REASON, RECIPE, spec_and_recipe

PARENT = "mlflow_run_id"  # prefix of the study's user attributes that hold ids of its parent runs
STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}


class StudyLog:
    """Logs trials as they finish, and trials that an earlier command could not log.

    The caller holds the study's lock. Raises BusyError if a driver on another machine works on the study, StoreError if
    the study is logged in another store.

    Args:
        params: the study's identity, logged as params of every run.
        is_shared: whether other machines may use the study's database.
        take_over: the other machine's driver is known to be gone.
    """

    def __init__(
        self,
        store: Store,
        study: optuna.Study,
        params: dict[str, Any],
        half: Half,
        *,
        is_shared: bool = False,
        take_over: bool = False,
    ):
        self._store, self._study, self._params, self._half = store, study, params, half
        parent = open_parent(
            store,
            f"study {study.study_name!r}",
            find=lambda: self._parents(is_shared),
            start=self._start_parent,
            params=params,
            take_over=take_over,
        )
        self.run_id = str(parent.info.run_id)
        self._logged: set[int] = set()
        for run in store.find(TUNING, role=Role.TRIAL, parent=self.run_id):
            if run.info.status == "RUNNING":  # its logging was cut off
                store.end(run.info.run_id, cast(Status, run.data.tags.get("complete", "KILLED")))
            if "complete" in run.data.tags:
                self._logged.add(int(run.data.tags["trial"]))

    def _start_parent(self) -> str:
        name = self._study.study_name
        tags = {"role": Role.STUDY, "study": name}
        run_id = self._store.start(TUNING, f"study {name}", params=self._params, tags=tags)
        self._study.set_user_attr(f"{PARENT} {run_id}", run_id)
        return run_id

    def _parents(self, is_shared: bool) -> list[Run]:
        """The study's active parent runs. Raises StoreError if a shared study has a run in another store."""
        ids = [str(value) for key, value in self._study.user_attrs.items() if key.startswith(PARENT)]
        runs = [self._store.get(run_id) for run_id in ids]
        if runs and is_shared and not any(runs):
            raise StoreError(
                f"study {self._study.study_name!r} is logged in another MLflow store than {masked(self._store.uri)}; "
                "give that store with --tracking-uri, or another --study-name"
            )
        return [run for run in runs if run is not None and run.info.lifecycle_stage == "active"]

    def log_finished(self, trials: list[FrozenTrial]) -> None:
        """Log those of the study's `counting` trials that are not logged yet, in order of number."""
        for trial in trials:
            if trial.number not in self._logged:
                self._log(trial, trials)
                self._logged.add(trial.number)

    def _log(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        epochs = [Epoch(**fields) for fields in trial.user_attrs.get(EPOCHS, [])]
        params = self._params | (settings_params(*spec_and_recipe(trial)) if RECIPE in trial.user_attrs else {})
        tags = {"role": Role.TRIAL, "trial": trial.number, "parent": self.run_id, "optuna.state": trial.state.name}
        if trial.state == TrialState.PRUNED:
            tags["optuna.pruned_step"] = len(epochs)
        if REASON in trial.user_attrs:
            tags["reason"] = trial.user_attrs[REASON]
        times = (trial.datetime_start, trial.datetime_complete)
        start_ms, end_ms = (int(at.timestamp() * 1_000) if at else None for at in times)
        name = f"trial {trial.number:03d}"
        run_id = self._store.start(TUNING, name, parent=self.run_id, params=params, tags=tags, start_ms=start_ms or 0)
        self._store.log_data(run_id, self._half, "source")
        metrics = curve_rows(epochs)
        if trial.state == TrialState.COMPLETE:
            metrics.append(("val_accuracy", trial.value or 0.0, 0))
        if trial.duration:
            metrics.append(("seconds", trial.duration.total_seconds(), 0))
        scores = [t.value or 0.0 for t in trials if t.number <= trial.number and t.state == TrialState.COMPLETE]
        if scores:
            self._store.log(self.run_id, metrics=[("best_value", max(scores), trial.number)])
        status = STATUS[trial.state]
        self._store.log(run_id, metrics=metrics, tags={"complete": status})  # if killed here, the next command ends it
        self._store.end(run_id, status, end_ms)
