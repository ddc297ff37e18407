"""The study between kills: what counts, what is run again, with which parameters. No training: ask and tell by hand."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.store.retry import RetryPolicy
from tuning.space import starts
from tuning.study import FIXED, REASON, RECIPE, counting, enqueue_start, open_storage, open_study, requeue
from tuning.study import SETTINGS as ATTRIBUTE

SETTINGS = {"max_cost": 1.0, "epochs": 2}


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return open_storage(None, tmp_path, RetryPolicy())


@pytest.fixture
def study(storage: optuna.storages.RDBStorage) -> optuna.Study:
    """A study whose first trial waits."""
    study = open_study(storage, "cnn2", SETTINGS)
    study.set_user_attr(ATTRIBUTE, SETTINGS)
    enqueue_start(study, 0, 1.0)
    return study


def ask(study: optuna.Study, *, whole: bool = True) -> optuna.Trial:
    """A trial as far as the driver has it when a worker starts, or not as far."""
    trial = study.ask()
    trial.suggest_float("fc_dropout", 0, 0.5)
    if whole:
        trial.set_user_attr(RECIPE, {})
    return trial


def waiting(study: optuna.Study) -> list[dict[str, object]]:
    trials = study.get_trials(states=(TrialState.WAITING,))
    return [trial.system_attrs[FIXED] for trial in trials]


def test_the_first_trials_are_enqueued_one_by_one_after_those_that_wait(study: optuna.Study) -> None:
    enqueue_start(study, 0, 1.0)  # again, after a kill
    assert waiting(study) == starts(1.0)[:1]
    ask(study)
    requeue(study, failed=False)
    enqueue_start(study, 0, 1.0)
    assert len(waiting(study)) == 1  # the interrupted one
    study.tell(ask(study), 0.5)
    for ordinal in (1, len(starts(1.0))):
        enqueue_start(study, ordinal, 1.0)
        assert waiting(study) == starts(1.0)[1:2]


def test_a_study_keeps_to_its_settings(storage: optuna.storages.RDBStorage, study: optuna.Study) -> None:
    with pytest.raises(UsageError, match="epochs"):
        open_study(storage, "cnn2", SETTINGS | {"epochs": 3})
    assert waiting(study) == starts(1.0)[:1]


@pytest.mark.parametrize("whole", [True, False])
def test_a_trial_of_a_dead_driver_waits_with_the_parameters_it_had(study: optuna.Study, whole: bool) -> None:
    """Of the enqueued first one all; of one that was drawing its parameters none, for it will draw the same."""
    ask(study, whole=whole)
    requeue(study, failed=True)
    requeue(study, failed=True)
    assert waiting(study) == starts(1.0)[:1] if not whole else len(waiting(study)) == 1
    study.tell(ask(study), 0.5)
    assert [trial.value for trial in counting(study)] == [0.5]
    drawn = ask(study, whole=whole)
    requeue(study, failed=True)
    assert waiting(study) == ([{"fc_dropout": drawn.params["fc_dropout"]}] if whole else [])
    assert len(counting(study)) == 1


def test_what_counts(study: optuna.Study) -> None:
    """Complete, pruned and failed by an error of their own; not what a driver gave up, nor what is run again."""
    numbers = {}
    for name, state, reason in (
        ("complete", TrialState.COMPLETE, ""),
        ("pruned", TrialState.PRUNED, ""),
        ("failed", TrialState.FAIL, "ValueError: no"),
        ("interrupted", TrialState.FAIL, ""),
    ):
        trial = ask(study)
        numbers[name] = trial.number
        if reason:
            trial.set_user_attr(REASON, reason)
        if state == TrialState.COMPLETE:
            study.tell(trial, 0.5)
        else:
            study.tell(trial, state=state)
    running = ask(study)
    assert [trial.number for trial in counting(study)] == [numbers[name] for name in ("complete", "pruned", "failed")]
    requeue(study, failed=False)
    assert [trial.number for trial in counting(study)] == [numbers[name] for name in ("complete", "pruned", "failed")]
    assert len(waiting(study)) == 2  # the interrupted one, and the one that was running
    requeue(study, failed=True)
    assert [trial.number for trial in counting(study)] == [numbers[name] for name in ("complete", "pruned")]
    assert len(waiting(study)) == 3
    assert study.get_trials()[running.number].state == TrialState.FAIL


def test_a_study_that_must_not_be_made_is_not(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        open_storage(None, tmp_path, RetryPolicy(timeout_seconds=0), may_write=False)
    assert list(tmp_path.iterdir()) == []
