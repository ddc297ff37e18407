"""The search's driver: asks the study for trials, gives them to workers, prunes them, and tells the study the results.

Only the driver accesses the study. MLflow gets one run for the study and, per finished trial, one with its epoch curve.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.errors import SAME_COMMAND, StoreError
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.opening import open_parent
from fmnist_transfer.store.retry import RetryingClient
from fmnist_transfer.store.roles import TUNING, Role, curve_rows, settings_params
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.recipe import Recipe, still_known
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Outcome
from tuning.settings import SearchSettings
from tuning.space import suggest
from tuning.study import EPOCHS, REASON, RECIPE, SETTINGS, SPEC, counting, enqueue_start, requeue
from tuning.trainings import Candidate, Plan, train_trial

N_STARTUP_TRIALS = 4  # trials before TPE sampling and pruning begin
PARENT = "mlflow_run_id"  # prefix of the study's user attributes that hold ids of its parent runs
STATUS: dict[str, Status] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def study_run(store: Store, study: optuna.Study, params: dict[str, Any], *, is_shared: bool, take_over: bool) -> str:
    """Reopen or start the study's parent run; return its id. The caller holds the study's lock.

    Raises BusyError if another machine runs the study, StoreError if its database is shared (`is_shared`) but its runs
    are in another store.
    """
    name = study.study_name

    def start() -> str:
        run_id = store.start(TUNING, f"study {name}", params=params, tags={"role": Role.STUDY, "study": name})
        study.set_user_attr(f"{PARENT} {run_id}", run_id)
        return run_id

    def find() -> list[Run]:
        runs = [store.get(str(run_id)) for key, run_id in study.user_attrs.items() if key.startswith(PARENT)]
        if runs and is_shared and not any(runs):
            raise StoreError(
                f"study {name!r} is logged in another MLflow store than {masked(store.uri)}; give that store with "
                "--tracking-uri, or another --study-name"
            )
        return [run for run in runs if run is not None and run.info.lifecycle_stage == "active"]

    parent = open_parent(store, f"study {name!r}", find=find, start=start, params=params, take_over=take_over)
    return str(parent.info.run_id)


def candidate(trial: FrozenTrial) -> Candidate:
    """Rebuild the configuration of a trial from its attributes."""
    spec, recipe = (still_known(trial.user_attrs[name]) for name in (SPEC, RECIPE))
    return Candidate(CNN2Spec(**spec), Recipe(**recipe), trial.number, trial.value)


@dataclass
class _Running:
    """A trial that a worker is training, with the epochs that it has reported."""

    trial: Any  # an Optuna trial, whose calls are retried
    epochs: list[Epoch] = field(default_factory=list)
    is_pruned: bool = False


class Trials:
    """A `TaskLog` for a study's trials, logged below the parent run `run_id`. The caller holds the study's lock.

    `counting` lists the trials that count towards `--trials`. Those that an earlier command did not log are logged now.
    """

    def __init__(
        self, study: optuna.Study, store: Store, plan: Plan, settings: SearchSettings, *, workers: Workers, run_id: str
    ):
        self._study, self._store, self._plan, self._settings = study, store, plan, settings
        self._workers, self._run_id = workers, run_id
        self._deadline = time.monotonic() + (math.inf if settings.timeout is None else settings.timeout)
        self._params: dict[str, Any] = study.user_attrs[SETTINGS]
        self._running: dict[Candidate, _Running] = {}
        # While the rate is high, accuracy says little about the end: over 28 trainings of 6 epochs it correlates with
        # the last one by at most 0.4 up to epoch 4, and by 0.8 at epoch 5. So only the worst quarter stops, and late.
        latest = settings.epochs - max(1, settings.epochs // 6)
        study.pruner = optuna.pruners.PercentilePruner(75.0, N_STARTUP_TRIALS, latest, n_min_trials=4)
        self._logged: set[int] = set()
        for run in store.find(TUNING, role=Role.TRIAL, parent=run_id):
            if run.info.status == "RUNNING":  # its logging was cut off
                store.end(run.info.run_id, cast(Status, run.data.tags.get("complete", "KILLED")))
            if "complete" in run.data.tags:
                self._logged.add(int(run.data.tags["trial"]))
        self._log_finished()

    def run(self) -> list[FrozenTrial]:
        """Run trials until enough count, and return these. Raises Interrupted after a signal."""
        workers, plan, n, debug = self._workers, self._plan, self._settings.trials, self._settings.debug
        with Progress("trials", max(0, n - len(self.counting))) as progress:
            run_logged(workers, train_trial, plan, self.tasks(), log=self, progress=progress, debug=debug)
        workers.stop.raise_if_set(f"{len(self.counting)} of {n} trials done; {SAME_COMMAND}")
        return self.counting

    def tasks(self) -> Iterator[Candidate]:
        """Yield trials until enough count or the deadline has passed; enqueued parameters come first."""
        settings, retry = self._settings, self._store.retry
        while time.monotonic() < self._deadline:
            if (ordinal := len(self.counting) + len(self._running)) >= settings.trials:
                return
            # A sampler per trial makes a resumed study (one worker) equal an uninterrupted one.
            seed = Streams(settings.seed, ordinal).seed("sampler") % 2**32
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
            retry.call(enqueue_start, self._study, ordinal, settings.cost_limit)
            trial: Any = RetryingClient(retry.call(self._study.ask), retry)
            spec, recipe = suggest(trial, epochs=settings.epochs, max_cost=settings.cost_limit)
            trial.set_user_attr(SPEC, spec.to_dict())
            trial.set_user_attr(RECIPE, recipe.to_dict())
            task = Candidate(spec, recipe, trial.number)
            self._running[task] = _Running(trial)
            yield task

    def name(self, task: Candidate) -> str:
        return task.name

    def begin(self, task: Candidate) -> None: ...  # `end` creates the trial's run

    def report(self, task: Candidate, news: Epoch) -> tuple[float, str]:
        """Report an epoch to the trial, and cancel the training if Optuna prunes it."""
        running, n_epochs = self._running[task], task.recipe.epochs
        last = running.epochs[-1].epoch if running.epochs else 0
        if news.epoch > last and not running.is_pruned:  # a retried task repeats its epochs
            running.epochs.append(news)
            running.trial.report(news.val_accuracy, news.epoch)
            if news.epoch < n_epochs and running.trial.should_prune():
                running.is_pruned = True
                self._workers.cancel(task)
        return news.epoch / n_epochs, f"{self._best}; epoch {news.epoch}/{n_epochs}: {news.val_accuracy:.2%}"

    def end(self, outcome: Outcome[Candidate, Any]) -> str | None:
        """Tell the study the outcome and log it. An interrupted trial stays RUNNING until `close`."""
        running = self._running.pop(outcome.task)
        if outcome.status == "interrupted" and not running.is_pruned:
            return None
        trial, reason = running.trial, ""
        result: dict[str, Any]
        if running.is_pruned:
            result = {"state": TrialState.PRUNED}
        elif isinstance(outcome.result, Diverged):  # pruned rather than failed, so that the sampler learns from it
            result, reason = {"state": TrialState.PRUNED}, f"Diverged: {outcome.result}"
        elif outcome.status == "done":
            result = {"values": outcome.result}
        else:
            result, reason = {"state": TrialState.FAIL}, outcome.reason
        trial.set_user_attr(EPOCHS, [dataclasses.asdict(epoch) for epoch in running.epochs])
        if reason:
            trial.set_user_attr(REASON, reason)
        self._store.retry.call(self._study.tell, trial.number, skip_if_finished=True, **result)
        self._log_finished()
        return self._best

    def close(self) -> None:
        self._store.retry.call(requeue, self._study, failed=False)

    def _log_finished(self) -> None:
        """Reread the trials that count, update the best for the progress, and log trials not logged yet."""
        self.counting: list[FrozenTrial] = self._store.retry.call(counting, self._study)
        complete = [trial for trial in self.counting if trial.state == TrialState.COMPLETE]
        best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
        self._best = "none is complete yet" if best is None else f"best {best.value:.2%} (trial {best.number})"
        for trial in self.counting:
            if trial.number not in self._logged:
                self._log(trial, [other.value or 0.0 for other in complete if other.number <= trial.number])
                self._logged.add(trial.number)

    def _log(self, trial: FrozenTrial, scores: list[float]) -> None:
        """Log the trial; `scores` are those of the trials up to it."""
        store, epochs = self._store, [Epoch(**epoch) for epoch in trial.user_attrs.get(EPOCHS, [])]
        params, name = self._params, f"trial {trial.number:03d}"
        if RECIPE in trial.user_attrs:  # another program may have added a trial
            task = candidate(trial)
            params = params | settings_params(task.spec, task.recipe)
        tags = {"role": Role.TRIAL, "trial": trial.number, "parent": self._run_id, "optuna.state": trial.state.name}
        if trial.state == TrialState.PRUNED:
            tags["optuna.pruned_step"] = epochs[-1].epoch if epochs else 0
        if REASON in trial.user_attrs:
            tags["reason"] = trial.user_attrs[REASON]
        times = (trial.datetime_start, trial.datetime_complete)
        start_ms, end_ms = (int(at.timestamp() * 1_000) if at else None for at in times)
        run_id = store.start(TUNING, name, parent=self._run_id, params=params, tags=tags, start_ms=start_ms or 0)
        store.log_data(run_id, self._plan.half, "source")
        metrics = curve_rows(epochs)
        if trial.state == TrialState.COMPLETE:
            metrics.append(("val_accuracy", trial.value or 0.0, 0))
        if trial.duration:
            metrics.append(("seconds", trial.duration.total_seconds(), 0))
        if scores:
            store.log(self._run_id, metrics=[("best_value", max(scores), trial.number)])
        status = STATUS[trial.state.name]
        store.log(run_id, metrics=metrics, tags={"complete": status})  # if killed here, the next command ends it
        store.end(run_id, status, end_ms)
