"""The study between kills: what counts, what is run again, with which parameters. No training: ask and tell by hand."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.retry import RetryPolicy
from tuning.space import first_trial
from tuning.study.storage import NoRoom, PatientStorage, patient_storage, storage_uri
from tuning.study.study import (
    DRIVER,
    FIXED,
    INTERRUPTED,
    ORDINAL,
    _fail,
    begun,
    find_study,
    finished,
    interrupt_dead,
    open_study,
    settle_lost,
)

SETTINGS = {"max_mflops": 4.0, "epochs": 2}


@pytest.fixture
def storage(tmp_path: Path) -> PatientStorage:
    return patient_storage(storage_uri(None, tmp_path, RetryPolicy()), RetryPolicy())


@pytest.fixture
def study(storage: PatientStorage) -> optuna.Study:
    return open_study(storage, "cnn2", SETTINGS)


def begin(study: optuna.Study, ordinal: int, *, whole: bool = True) -> optuna.Trial:
    """A trial as far as a worker has it when training starts, or not as far."""
    trial = study.ask()
    trial.set_user_attr(DRIVER, asdict(Owner.this_process()))
    trial.set_user_attr(ORDINAL, ordinal)
    trial.suggest_float("width", 0, 1)
    if whole:
        trial.set_user_attr("recipe", {})
    return trial


def waiting(study: optuna.Study) -> list[dict[str, object]]:
    trials = study.get_trials(states=(TrialState.WAITING,))
    return [trial.system_attrs[FIXED] for trial in trials]


def test_a_waiting_trial_is_begun_by_one_worker_alone(
    tmp_path: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite would let both read `waiting` before either writes `running`."""
    trial = study.get_trials(states=(TrialState.WAITING,))[0]
    find = optuna.storages._rdb.models.TrialModel.find_or_raise_by_id

    def slow(*arguments: object, **options: object) -> object:
        found = find(*arguments, **options)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(optuna.storages._rdb.models.TrialModel, "find_or_raise_by_id", slow)
    workers = [patient_storage(storage_uri(None, tmp_path, RetryPolicy()), RetryPolicy()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        begun = pool.map(lambda one: one.set_trial_state_values(trial._trial_id, TrialState.RUNNING), workers)
    assert sorted(begun) == [False, True]


def test_no_trial_is_begun_where_there_is_no_room(storage: PatientStorage, study: optuna.Study) -> None:
    """Neither a waiting one nor a new one; enqueueing begins none."""
    storage.has_room = lambda: len(begun(study)) < 2
    study.ask()  # the first, which was waiting
    study.ask()
    with pytest.raises(NoRoom):
        study.ask()
    study.enqueue_trial({"width": 0.5})
    with pytest.raises(NoRoom):
        study.ask()
    assert (len(begun(study)), len(waiting(study))) == (2, 1)


def test_the_first_trial_is_enqueued_once_even_if_the_beginning_was_cut_off(storage: PatientStorage) -> None:
    study = optuna.create_study(study_name="cnn2", storage=storage, direction="maximize")
    study.enqueue_trial(first_trial(4.0))  # and then it was killed
    assert waiting(open_study(storage, "cnn2", SETTINGS)) == [first_trial(4.0)]
    assert waiting(open_study(storage, "cnn2", SETTINGS)) == [first_trial(4.0)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_trial_that_died_waits_with_the_parameters_it_had(study: optuna.Study, whole: bool) -> None:
    """Of the enqueued first one all; of one that was drawing its parameters none, for it will draw the same."""
    begin(study, 0, whole=whole)
    interrupt_dead(study)
    interrupt_dead(study)
    assert waiting(study) == [first_trial(4.0)] if not whole else len(waiting(study)) == 1
    study.tell(begin(study, 0), 0.5)
    assert len(finished(study)) == 1
    drawn = begin(study, 1, whole=whole)
    interrupt_dead(study)
    assert waiting(study) == ([{"width": drawn.params["width"]}] if whole else [])


def test_a_trial_is_lost_twice_only_if_its_own_parameters_were_lost_before(study: optuna.Study) -> None:
    begin(study, 0)
    assert settle_lost(study, 0)
    assert (finished(study), len(waiting(study))) == ([], 1)
    begin(study, 5)  # on whichever worker
    settle_lost(study, 0)  # another's
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1
    assert not settle_lost(study, 5)
    (failed,) = finished(study)
    assert (failed.state, failed.user_attrs["reason"]) == (TrialState.FAIL, "the worker process died, twice")
    assert waiting(study) == []


@pytest.fixture
def lock(storage: PatientStorage) -> Iterator[sqlite3.Connection]:
    """Keeps others from writing until it is rolled back; they wait for 50 ms themselves."""
    sqlalchemy.event.listen(storage.engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout = 50"))
    storage.engine.dispose()
    with contextlib.closing(sqlite3.connect(storage.url.removeprefix("sqlite:///"), check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_locked_database_is_waited_for(
    study: optuna.Study, lock: sqlite3.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the midst of a transaction, which is tried again from its beginning."""
    timer = threading.Timer(1.0, lock.rollback)
    timer.start()
    trial = study.ask()
    timer.join()
    assert trial.number == 0
    assert len(study.get_trials()) == 1
    assert "note: the store does not answer (database is locked)" in capsys.readouterr().err


def test_a_database_that_stays_locked_is_given_up(study: optuna.Study, storage: PatientStorage, lock: object) -> None:
    storage.retry = RetryPolicy(timeout_seconds=0.2)
    with pytest.raises(StoreError, match="database is locked"):
        study.ask()


def test_a_trial_that_an_orphan_finished_meanwhile_is_left_alone(study: optuna.Study) -> None:
    trial = begin(study, 0)
    (running,) = study.get_trials(states=(TrialState.RUNNING,))
    study.tell(trial, 0.5)
    _fail(study, running, INTERRUPTED, True)
    (counted,) = finished(study)
    assert counted.value == 0.5


def test_a_study_is_found_or_not(study: optuna.Study, storage: PatientStorage) -> None:
    found = find_study(storage, "cnn2")
    assert found is not None
    assert found.study_name == study.study_name
    assert find_study(storage, "another") is None
