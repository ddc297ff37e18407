"""The study between kills: what counts, what is run again, with which parameters. No training: ask and tell by hand."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fmnist_transfer.errors import StoreError
from fmnist_transfer.patience import Patience
from tuning.space import first_trial
from tuning.storage import PatientStorage, patient_storage, storage_uri
from tuning.study import (
    FIXED,
    ORDINAL,
    find_study,
    finished,
    interrupt_running,
    open_study,
    settle_lost,
)

SETTINGS = {"max_mflops": 4.0, "epochs": 2}


@pytest.fixture
def storage(tmp_path: Path) -> PatientStorage:
    return patient_storage(storage_uri(None, tmp_path), Patience())


@pytest.fixture
def study(storage: PatientStorage) -> optuna.Study:
    return open_study(storage, "cnn2", SETTINGS)


def begin(study: optuna.Study, ordinal: int, *, whole: bool = True) -> optuna.Trial:
    """A trial as far as a worker has it when training starts, or not as far."""
    trial = study.ask()
    trial.set_user_attr(ORDINAL, ordinal)
    trial.suggest_float("width", 0, 1)
    if whole:
        trial.set_user_attr("recipe", {})
    return trial


def waiting(study: optuna.Study) -> list[dict[str, object]]:
    trials = study.get_trials(states=(TrialState.WAITING,))
    return [trial.system_attrs[FIXED] for trial in trials]


def test_the_first_trial_is_enqueued_once_even_if_the_beginning_was_cut_off(storage: PatientStorage) -> None:
    study = optuna.create_study(study_name="cnn2", storage=storage, direction="maximize")
    study.enqueue_trial(first_trial(4.0))  # and then it was killed
    assert waiting(open_study(storage, "cnn2", SETTINGS)) == [first_trial(4.0)]
    assert waiting(open_study(storage, "cnn2", SETTINGS)) == [first_trial(4.0)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_trial_that_died_waits_with_the_parameters_it_had(study: optuna.Study, whole: bool) -> None:
    """Of the enqueued first one all; of one that was drawing its parameters none, for it will draw the same."""
    begin(study, 0, whole=whole)
    interrupt_running(study)
    interrupt_running(study)
    assert waiting(study) == [first_trial(4.0)] if not whole else len(waiting(study)) == 1
    study.tell(begin(study, 0), 0.5)
    assert len(finished(study)) == 1
    drawn = begin(study, 1, whole=whole)
    interrupt_running(study)
    assert waiting(study) == ([{"width": drawn.params["width"]}] if whole else [])


def test_a_trial_is_lost_twice_only_if_its_own_parameters_were_lost_before(study: optuna.Study) -> None:
    begin(study, 0)
    settle_lost(study, 0)
    assert (finished(study), len(waiting(study))) == ([], 1)
    begin(study, 5)  # on whichever worker
    settle_lost(study, 0)  # another's
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1
    settle_lost(study, 5)
    (failed,) = finished(study)
    assert (failed.state, failed.user_attrs["reason"]) == (TrialState.FAIL, "the worker process died, twice")
    assert waiting(study) == []


def test_every_call_of_the_storage_is_patient(study: optuna.Study, storage: PatientStorage) -> None:
    import sqlalchemy.exc

    def refuse(*arguments: object) -> None:
        raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("database is locked"))

    storage._patience = Patience(timeout_seconds=0)
    storage.scoped_session, session = refuse, storage.scoped_session
    with pytest.raises(StoreError, match="database is locked"):
        study.ask()
    storage.scoped_session = session
    assert study.ask().number == 0


def test_a_study_is_found_or_not(study: optuna.Study, storage: PatientStorage) -> None:
    found = find_study(storage, "cnn2")
    assert found is not None
    assert found.study_name == study.study_name
    assert find_study(storage, "another") is None
