"""A study as MLflow runs: one parent for the study, one child for each finished trial, with its epoch curve."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.data import Half
from fmnist_transfer.tracking import TUNING, Store, curve_rows, settings_params
from fmnist_transfer.training import Epoch
from tuning.study import EPOCHS, REASON, finished, spec_and_recipe

PARENT = "mlflow_run_id"  # user attribute of the study
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


class StudyLog:
    """Logs trials as they finish, and those that an earlier run of the command finished but could not log."""

    def __init__(self, store: Store, study: optuna.Study, params: dict[str, Any], half: Half):
        self._store, self._study, self._params, self._half = store, study, params, half
        known = {run.info.run_id: run for run in store.find(TUNING, role="study", study=study.study_name)}
        self.run_id: str = study.user_attrs.get(PARENT, "")
        if self.run_id in known:
            store.reopen(known[self.run_id], "search", params)
        else:
            tags = {"role": "study", "study": study.study_name}
            self.run_id = store.start(TUNING, f"study {study.study_name}", params=params, tags=tags)
            study.set_user_attr(PARENT, self.run_id)
        self._logged = set()
        for run in store.find(TUNING, role="trial", parent=self.run_id):
            if "complete" in run.data.tags:
                self._logged.add(int(run.data.tags["trial"]))
            if run.info.status == "RUNNING":  # its logging was cut off
                store.end(run.info.run_id, run.data.tags.get("complete", "KILLED"))

    def delete_ghosts(self) -> int:
        """Delete runs of trials that were not logged whole (they are logged again); how many."""
        runs = self._store.find(TUNING, role="trial", parent=self.run_id)
        ghosts = [run.info.run_id for run in runs if "complete" not in run.data.tags]
        for run_id in ghosts:
            self._store.client.delete_run(run_id)
        return len(ghosts)

    def log_finished(self) -> None:
        """Log every finished trial that is not yet logged, in order of number."""
        for trial in finished(self._study):
            if trial.number not in self._logged:
                self._log(trial)
                self._logged.add(trial.number)

    def _log(self, trial: FrozenTrial) -> None:
        epochs = [Epoch(**fields) for fields in trial.user_attrs.get(EPOCHS, [])]
        params = self._params | (settings_params(*spec_and_recipe(trial)) if "recipe" in trial.user_attrs else {})
        tags = {"role": "trial", "trial": trial.number, "parent": self.run_id, "optuna.state": trial.state.name}
        if trial.state == TrialState.PRUNED:
            tags["optuna.pruned_step"] = len(epochs)
        if REASON in trial.user_attrs:
            tags["reason"] = trial.user_attrs[REASON]
        name = f"trial {trial.number:03d}"
        run_id = self._store.start(TUNING, name, parent=self.run_id, params=params, tags=tags)
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
        self._store.end(run_id, status)
