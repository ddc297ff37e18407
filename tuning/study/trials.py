"""The search's driver: asks the study for trials, gives them to workers, prunes them, and tells the study the results.

Only the driver accesses the study.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Outcome
from tuning.space import suggest
from tuning.study.study import EPOCHS, REASON, RECIPE, SPEC, counting, requeue
from tuning.study.study_log import StudyLog
from tuning.study.task import TrialPlan, TrialTask

N_STARTUP_TRIALS = 6  # trials before TPE sampling and pruning begin


@dataclass
class _Running:
    """A trial that a worker is training."""

    trial: Any
    """Optuna's trial, whose calls are retried."""
    epochs: list[Epoch] = field(default_factory=list)
    is_pruned: bool = False


class Driver:
    """A `TaskLog` for the trials of one study.

    Args:
        log: logs finished trials to MLflow.
        progress: shows the best trial so far.
        n_trials: number of counting trials to reach.
        deadline: time by `time.monotonic` after which no trial starts.
    """

    def __init__(
        self,
        study: optuna.Study,
        log: StudyLog,
        plan: TrialPlan,
        *,
        workers: Workers,
        retry: RetryPolicy,
        progress: Progress,
        n_trials: int,
        max_mflops: float | None,
        deadline: float,
    ):
        self._study, self._log, self._plan, self._workers = study, log, plan, workers
        self._retry, self._progress = retry, progress
        self._n_trials, self._max_mflops, self._deadline = n_trials, max_mflops, deadline
        self._running: dict[int, _Running] = {}
        study.pruner = optuna.pruners.MedianPruner(
            n_startup_trials=N_STARTUP_TRIALS, n_warmup_steps=max(1, plan.epochs // 5), n_min_trials=5
        )
        progress.best = best_of(counting(study))

    def tasks(self) -> Iterator[TrialTask]:
        """Yield trials until enough count or the deadline has passed; enqueued parameters come first."""
        while time.monotonic() < self._deadline:
            ordinal = len(self._retry.call(counting, self._study)) + len(self._running)
            if ordinal >= self._n_trials:
                return
            yield self._ask(ordinal)

    def _ask(self, ordinal: int) -> TrialTask:
        """Ask for the next trial. Its own sampler makes a resumed study (one worker) equal an uninterrupted one."""
        seed = Streams(self._plan.seed, ordinal).seed("sampler") % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
        trial: Any = RetryingClient(self._retry.call(self._study.ask), self._retry)
        spec, recipe = suggest(trial, epochs=self._plan.epochs, max_mflops=self._max_mflops)
        trial.set_user_attr(SPEC, spec.to_dict())
        trial.set_user_attr(RECIPE, recipe.to_dict())
        self._running[trial.number] = _Running(trial)
        return TrialTask(trial.number, spec, recipe)

    def name(self, task: TrialTask) -> str:
        return f"trial {task.number}"

    def begin(self, task: TrialTask) -> None:
        """Do nothing: `end` creates the trial's run."""

    def report(self, task: TrialTask, news: Epoch) -> tuple[float, str]:
        """Report an epoch to the trial, and cancel the training if Optuna prunes it."""
        running = self._running[task.number]
        if news.epoch > len(running.epochs) and not running.is_pruned:  # a retried task repeats its epochs
            running.epochs.append(news)
            running.trial.report(news.val_accuracy, news.epoch)
            if news.epoch < self._plan.epochs and running.trial.should_prune():
                running.is_pruned = True
                self._workers.cancel(task)
        return news.epoch / self._plan.epochs, f"epoch {news.epoch}/{self._plan.epochs}: {news.val_accuracy:.2%}"

    def end(self, outcome: Outcome[TrialTask, Any]) -> str | None:
        """Tell the study the outcome and log it. An interrupted trial stays RUNNING until `close`."""
        running = self._running.pop(outcome.task.number)
        if outcome.status == "interrupted" and not running.is_pruned:
            return None
        trial = running.trial
        trial.set_user_attr(EPOCHS, [dataclasses.asdict(epoch) for epoch in running.epochs])
        result: dict[str, Any] = {"values": outcome.result}
        if running.is_pruned:
            result = {"state": TrialState.PRUNED}
        elif isinstance(outcome.result, Diverged):  # pruned rather than failed, so that the sampler learns from it
            trial.set_user_attr(REASON, f"Diverged: {outcome.result}")
            result = {"state": TrialState.PRUNED}
        elif outcome.status == "failed":
            trial.set_user_attr(REASON, outcome.reason)
            result = {"state": TrialState.FAIL}
        self._retry.call(self._study.tell, outcome.task.number, skip_if_finished=True, **result)
        trials = self._retry.call(counting, self._study)
        self._progress.best = best_of(trials)
        self._log.log_finished(trials)
        return ""

    def close(self) -> None:
        self._retry.call(requeue, self._study, failed=False)


def best_of(trials: list[FrozenTrial]) -> str:
    """Describe the best complete trial."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
    return "none is complete yet" if best is None else f"best {best.value:.2%} (trial {best.number})"
