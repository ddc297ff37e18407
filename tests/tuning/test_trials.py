"""The search's driver by hand: what it makes of a worker's reports. No training and no workers."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.task import Outcome
from tuning.settings import SearchSettings
from tuning.study import EPOCHS
from tuning.trainings import Candidate, Plan
from tuning.trials import SearchContext, Trials, expected_best


class Recorder:
    """Stands for the workers, the store and the half."""

    data_sha256, uri, show_command = "", "http://user:secret@host:5000/", "show"
    retry = RetryPolicy()

    def __init__(self) -> None:
        self.cancelled: list[Candidate] = []

    def cancel(self, task: Candidate) -> None:
        self.cancelled.append(task)

    def find(self, *names: str, **tags: str) -> list[Any]:
        return []

    def start(self, *names: str, **description: Any) -> str:
        return "run"

    def log(self, *names: Any, **rows: Any) -> None:
        pass

    log_data = end = log

    def experiment(self, name: str) -> str:
        return "1"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(recorder: Recorder) -> Trials:
    others: Any = recorder
    plan = Plan(others, DEFAULT_SPLIT, seed=0, device="cpu", precision="float32")
    study = optuna.create_study(direction="maximize")
    context = SearchContext(SearchSettings(trials=1, epochs=4), others, plan, others, Stopwatch())
    return Trials(context, study, "parent", {})


def epoch(number: int) -> Epoch:
    return Epoch(number, number, 0.5, 0.5, 0.5 + number / 100, 0.01, 1.0)


def test_a_retry_after_a_lost_worker_counts_no_epoch_twice(driver: Trials) -> None:
    (task,) = driver.tasks()
    for number in (1, 2, 1, 2, 3):
        driver.report(task, epoch(number))
    driver.end(Outcome(task, "done", result=0.53))
    (trial,) = driver._study.trials
    assert [logged["epoch"] for logged in trial.user_attrs[EPOCHS]] == [1, 2, 3]
    assert trial.intermediate_values == {1: 0.51, 2: 0.52, 3: 0.53}


def test_a_pruned_trial_takes_no_more_reports(driver: Trials, recorder: Recorder) -> None:
    """Its worker may send some before it hears that it is cancelled."""
    (task,) = driver.tasks()
    driver.report(task, epoch(1))
    driver._pruned.add(task)
    driver.report(task, epoch(2))
    driver.end(Outcome(task, "interrupted", reason="cancelled"))
    (trial,) = driver._study.trials
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", {1: 0.51})
    assert recorder.cancelled == []


def test_the_dashboard_links_to_the_runs_in_mlflow(driver: Trials) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    (task,) = driver.tasks()
    driver.end(Outcome(task, "done", result=0.53))
    trial: Any = SimpleNamespace(study=driver._study, storage=driver._study._storage, _trial_id=0)
    assert "(http://host:5000/#/experiments/1/runs/run)" in dashboard.get_note(trial)


def test_expected_best_is_the_mean_over_all_draws() -> None:
    scores = [0.9, 0.7, 0.8]
    for n, value in enumerate(expected_best(scores), 1):
        assert value == pytest.approx(np.mean([max(draw) for draw in itertools.product(scores, repeat=n)]))
