"""The search's driver: asks the study for trials, prunes them, tells it the results, and logs them to MLflow."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.errors import StoreError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.opening import open_parent
from fmnist_transfer.store.places import without_user
from fmnist_transfer.store.retry import RetryingClient
from fmnist_transfer.store.roles import TUNING, Role, curve_rows, settings_params
from fmnist_transfer.store.runs import Run, Status, Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.recipe import Recipe, still_known
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Outcome
from tuning.settings import SearchSettings
from tuning.space import suggest
from tuning.study import EPOCHS, REASON, RECIPE, SPEC, counting, enqueue_start, requeue
from tuning.trainings import Candidate, Plan

N_STARTUP_TRIALS = 4  # trials before TPE sampling and pruning begin
PARENT = "mlflow_run_id"  # prefix of the study's user attributes that hold ids of its parent runs
STATUS: dict[str, Status] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@dataclass(frozen=True)
class SearchContext:
    settings: SearchSettings
    store: Store
    plan: Plan
    workers: Workers
    stopwatch: Stopwatch


def study_run(context: SearchContext, study: optuna.Study, facts: dict[str, Any], *, is_shared: bool) -> str:
    """Reopen or start the study's parent run; return its id. The caller holds the study's lock.

    Raises BusyError if another machine runs the study, StoreError if its runs are elsewhere and it is shared.
    """
    store, noun = context.store, f"study {study.study_name}"

    def start() -> str:
        run_id = store.start(TUNING, noun, params=facts, tags={"role": Role.STUDY, "study": study.study_name})
        study.set_user_attr(f"{PARENT} {run_id}", run_id)
        _link(store, study, run_id)
        return run_id

    def find() -> list[Run]:
        runs = [store.get(str(run_id)) for key, run_id in study.user_attrs.items() if key.startswith(PARENT)]
        if runs and is_shared and not any(runs):
            remedy = "give that store with --tracking-uri, or another --study-name"
            raise StoreError(f"{noun} is logged in another MLflow store than {masked(store.uri)}; {remedy}")
        return [run for run in runs if run is not None and run.info.lifecycle_stage == "active"]

    take_over = context.settings.take_over
    return str(open_parent(store, noun, find=find, start=start, params=facts, take_over=take_over).info.run_id)


def _link(store: Store, study_or_trial: Any, run_id: str) -> None:
    """Link to the run by a note in Optuna's dashboard, if that is installed."""
    root = without_user(store.uri) if store.uri.startswith("http") else "http://127.0.0.1:5000"  # `show`'s default
    with contextlib.suppress(ImportError):
        from optuna_dashboard import save_note

        page = f"{root}/{run_page(store.experiment(TUNING), run_id)}"
        store.retry.call(save_note, study_or_trial, f"[Run in MLflow]({page}), shown by `{store.show_command}`")


def candidate(trial: FrozenTrial) -> Candidate:
    """Rebuild the configuration of a trial from its attributes."""
    spec, recipe = (still_known(trial.user_attrs[name]) for name in (SPEC, RECIPE))
    return Candidate(f"trial {trial.number:03d}", CNN2Spec(**spec), Recipe(**recipe), trial.number, trial.value)


def expected_best(scores: list[float]) -> list[float]:
    """Expected maximum of k = 1 ... n draws with replacement from n scores (Dodge et al. 2019)."""
    n, ordered = len(scores), sorted(scores)
    return [sum(x * ((i / n) ** k - ((i - 1) / n) ** k) for i, x in enumerate(ordered, 1)) for k in range(1, n + 1)]


class Trials:
    """A `TaskLog` for a study's trials below the parent run `run_id`; `counting` lists those that count."""

    def __init__(self, context: SearchContext, study: optuna.Study, run_id: str, facts: dict[str, Any]):
        self._context, self._study, self._run_id, self._facts = context, study, run_id, facts
        self._settings, self._store = context.settings, context.store
        self._running: dict[Candidate, tuple[Any, list[Epoch]]] = {}  # an Optuna trial, and the epochs it has reported
        self._pruned = set[Candidate]()
        # While the rate is high, accuracy says little about the end: over 28 trainings of 6 epochs it correlates with
        # the last one by at most 0.4 up to epoch 4, and by 0.8 at epoch 5. So only the worst quarter stops, and late.
        latest = self._settings.epochs - max(1, self._settings.epochs // 6)
        study.pruner = optuna.pruners.PercentilePruner(75.0, N_STARTUP_TRIALS, latest, n_min_trials=4)
        self._logged: dict[int, str] = {}  # trial number -> run id
        for run in self._store.find(TUNING, role=Role.TRIAL, parent=run_id):
            if run.info.status == "RUNNING":  # its logging was cut off
                self._store.end(run.info.run_id, cast(Status, run.data.tags.get("complete", "KILLED")))
            if "complete" in run.data.tags:
                self._logged[int(run.data.tags["trial"])] = run.info.run_id
        self._log_finished()

    def tasks(self) -> Iterator[Candidate]:
        """Yield trials until enough count or the deadline has passed; enqueued parameters come first."""
        settings, retry = self._settings, self._store.retry
        deadline = time.monotonic() + (math.inf if settings.timeout is None else settings.timeout)
        while time.monotonic() < deadline:
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
            task = Candidate(f"trial {trial.number:03d}", spec, recipe, trial.number)
            self._running[task] = trial, []
            yield task

    def name(self, task: Candidate) -> str:
        return task.name

    def begin(self, task: Candidate) -> None: ...  # `end` creates the trial's run

    def report(self, task: Candidate, news: Epoch) -> tuple[float, str]:
        """Report an epoch to the trial, and cancel the training if Optuna prunes it."""
        (trial, epochs), n_epochs = self._running[task], task.recipe.epochs
        last = epochs[-1].epoch if epochs else 0
        if news.epoch > last and task not in self._pruned:  # a retried task repeats its epochs
            epochs.append(news)
            trial.report(news.val_accuracy, news.epoch)
            if news.epoch < n_epochs and trial.should_prune():
                self._pruned.add(task)
                self._context.workers.cancel(task)
        return news.epoch / n_epochs, f"{self._best}; epoch {news.epoch}/{n_epochs}: {news.val_accuracy:.2%}"

    def end(self, outcome: Outcome[Candidate, Any]) -> str | None:
        """Tell the study the outcome and log it. An interrupted trial stays RUNNING until `close`."""
        (trial, epochs), is_pruned = self._running.pop(outcome.task), outcome.task in self._pruned
        if outcome.status == "interrupted" and not is_pruned:
            return None
        result, reason = dict[str, Any](state=TrialState.PRUNED), ""
        if isinstance(outcome.result, Diverged):  # pruned rather than failed, so that the sampler learns from it
            reason = f"Diverged: {outcome.result}"
        elif outcome.status == "done" and not is_pruned:
            result = {"values": outcome.result}
        elif not is_pruned:
            result, reason = {"state": TrialState.FAIL}, outcome.reason
        trial.set_user_attr(EPOCHS, [dataclasses.asdict(epoch) for epoch in epochs])
        if reason:
            trial.set_user_attr(REASON, reason)
        self._store.retry.call(self._study.tell, trial.number, skip_if_finished=True, **result)
        self._log_finished()
        _link(self._store, trial, self._logged[trial.number])
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
                self._logged[trial.number] = self._log(trial)
        if best is not None:
            self._store.log(self._run_id, metrics=[("best_value", best.value or 0.0, len(self.counting))])

    def _log(self, trial: FrozenTrial) -> str:
        """Log the finished trial as a run; return its id."""
        store, task, state = self._store, candidate(trial), trial.state.name
        start_ms, end_ms = (int(at.timestamp() * 1_000) for at in (trial.datetime_start, trial.datetime_complete) if at)
        tags = {"role": Role.TRIAL, "trial": trial.number, "parent": self._run_id, "optuna.state": state}
        if REASON in trial.user_attrs:
            tags["reason"] = trial.user_attrs[REASON]
        params = self._facts | settings_params(task.spec, task.recipe)
        run_id = store.start(TUNING, task.name, parent=self._run_id, params=params, tags=tags, start_ms=start_ms)
        store.log_data(run_id, self._context.plan.half, "source")
        metrics = curve_rows([Epoch(**epoch) for epoch in trial.user_attrs.get(EPOCHS, [])])
        metrics.append(("seconds", (end_ms - start_ms) / 1_000, 0))
        if trial.state == TrialState.COMPLETE:
            metrics.append(("val_accuracy", trial.value or 0.0, 0))
        status = STATUS[state]
        store.log(run_id, metrics=metrics, tags={"complete": status})  # if killed here, the next command ends it
        store.end(run_id, status, end_ms)
        return run_id
