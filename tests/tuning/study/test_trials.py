"""The search's driver by hand: what it makes of a worker's reports. No training and no workers."""

import math
from typing import Any

import optuna
import pytest

from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.task import Outcome
from tuning.study.study import EPOCHS
from tuning.study.task import TrialPlan, TrialTask
from tuning.study.trials import Driver


class Recorder:
    """Stands for the workers, the log and the progress."""

    def __init__(self) -> None:
        self.cancelled: list[TrialTask] = []
        self.best = ""

    def cancel(self, task: TrialTask) -> None:
        self.cancelled.append(task)

    def log_finished(self, trials: object) -> None:
        pass


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(recorder: Recorder) -> Driver:
    others: Any = recorder
    plan = TrialPlan(half=others, seed=0, epochs=4, device="cpu", precision="float32")
    return Driver(
        *(optuna.create_study(direction="maximize"), others, plan),
        **{"workers": others, "retry": RetryPolicy(), "progress": others},
        **{"n_trials": 1, "max_mflops": None, "deadline": math.inf},
    )


def epoch(number: int) -> Epoch:
    return Epoch(number, number, 0.5, 0.5, 0.5 + number / 100, 0.01, 1.0)


def test_a_retry_after_a_lost_worker_counts_no_epoch_twice(driver: Driver) -> None:
    (task,) = driver.tasks()
    for number in (1, 2, 1, 2, 3):
        driver.report(task, epoch(number))
    driver.end(Outcome(task, "done", result=0.53))
    (trial,) = driver._study.trials
    assert [logged["epoch"] for logged in trial.user_attrs[EPOCHS]] == [1, 2, 3]
    assert trial.intermediate_values == {1: 0.51, 2: 0.52, 3: 0.53}


def test_a_pruned_trial_takes_no_more_reports(driver: Driver, recorder: Recorder) -> None:
    """Its worker may send some before it hears that it is cancelled."""
    (task,) = driver.tasks()
    driver.report(task, epoch(1))
    driver._running[task.number].is_pruned = True
    driver.report(task, epoch(2))
    driver.end(Outcome(task, "interrupted", reason="cancelled"))
    (trial,) = driver._study.trials
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", {1: 0.51})
    assert recorder.cancelled == []
