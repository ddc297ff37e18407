"""A study as MLflow runs: one parent for the study, one child for each finished trial, with its epoch curve."""

from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.lock import check_owner
from fmnist_transfer.store.metric_rows import curve_rows, settings_params
from fmnist_transfer.store.roles import TUNING, Role
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.training.score import Epoch
from tuning.study.study import EPOCHS, REASON, RECIPE, counting, spec_and_recipe

PARENT = "mlflow_run_id"  # user attribute of the study
STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}


class StudyLog:
    """Logs trials as they finish, and those that an earlier command finished but could not log.

    The caller holds the study's lock. Raises BusyError if a driver on another machine has the study, StoreError if the
    study is logged in another store.

    Args:
        params: the study's identity, which becomes the params of every run.
        is_shared: other machines may use the study's database.
        take_over: end the runs of another machine, which is known to be gone.
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
        if parent := self._find_parent(is_shared):
            self.run_id = str(parent.info.run_id)
            check_owner(store.is_shared, parent, f"study {study.study_name!r}", take_over=take_over)
            store.reopen(parent, params)
        else:
            tags = {"role": Role.STUDY, "study": study.study_name}
            self.run_id = store.start(TUNING, f"study {study.study_name}", params=params, tags=tags)
            study.set_user_attr(PARENT, self.run_id)
        self._logged: set[int] = set()
        for run in store.find(TUNING, role=Role.TRIAL, parent=self.run_id):
            if run.info.status == "RUNNING":  # its logging was cut off
                store.end(run.info.run_id, cast(Status, run.data.tags.get("complete", "KILLED")))
            if "complete" in run.data.tags:
                self._logged.add(int(run.data.tags["trial"]))

    def _find_parent(self, is_shared: bool) -> Run | None:
        """The study's run; None if there is none, or if it was deleted."""
        run_id = str(self._study.user_attrs.get(PARENT, ""))
        if not run_id:
            return None
        run = self._store.get(run_id)
        if run is None and is_shared:
            raise StoreError(
                f"study {self._study.study_name!r} is logged in another MLflow store than {masked(self._store.uri)}; "
                "give that one with --tracking-uri, or another --study-name"
            )
        return run if run is not None and run.info.lifecycle_stage == "active" else None

    def log_finished(self) -> None:
        """Log every finished trial that is not yet logged, in order of number."""
        trials = counting(self._study)
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
        run_id = self._store.start(TUNING, name, parent=self.run_id, params=params, tags=tags, start_ms=start_ms)
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
        self._store.log(run_id, metrics=metrics, tags={"complete": status})  # a kill before the next line costs nothing
        self._store.end(run_id, status, end_ms)
