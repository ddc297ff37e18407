"""Open and resume the Optuna study. It has one driver, and keeps what is known about a trial, to be logged later."""

import warnings
import weakref
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.store.places import open_database, sqlite_path, study_uri
from fmnist_transfer.store.retry import RetryPolicy, reason
from fmnist_transfer.terminal.output import masked, warn_of_password
from tuning.space import starts

# User attributes of the study and its trials
SETTINGS, EPOCHS, SPEC, RECIPE = "settings", "epochs", "spec", "recipe"
REASON = "reason"  # why a trial failed or diverged; a failed trial without it was interrupted and does not count
AGAIN = "again"  # number of the trial that this one repeats; the repeated trial no longer counts
FIXED = "fixed_params"  # Optuna's private system attribute for an enqueued trial's parameters


def open_storage(storage: str | None, folder: Path, retry: RetryPolicy, *, may_write: bool = True) -> RDBStorage:
    """Open the study database, else `optuna.db` in `folder`; create a missing one if `may_write`. Raises StoreError."""
    warn_of_password(storage, "a .pgpass file")
    uri = study_uri(storage, folder)
    try:
        retry.call(open_database, uri, "Optuna", _connect, may_write=may_write)
        return retry.call(_connect, uri)
    except StoreError:
        raise
    except Exception as error:  # SQLAlchemy's, its drivers' or Optuna's
        text = reason(error) if error.__cause__ else masked(" ".join(str(error).split()))
        raise StoreError(f"cannot open the study database {masked(uri)}: {text}") from error


def _connect(uri: str) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A server may restart meanwhile, so connections are tested before use.
    options = {} if sqlite_path(uri) else {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
    storage = RDBStorage(uri, engine_kwargs=options)
    # Optuna itself leaves the connections of an unused storage open. The last finalizer is called first.
    weakref.finalize(storage, storage.engine.dispose)
    weakref.finalize(storage, storage.scoped_session.remove)
    return storage


def open_study(storage: RDBStorage, name: str, settings: dict[str, Any]) -> optuna.Study:
    """Open or create the study. Raises UsageError if its attribute `settings`, which the caller sets, differs."""
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get(SETTINGS, settings)
    if differing := [key for key in settings | before if settings.get(key) != before.get(key)]:
        changes = ", ".join(f"{key} {before.get(key)} (now {settings.get(key)})" for key in differing)
        remedy = "give the same values to continue it, or another --study-name to start anew"
        raise UsageError(f"study {name!r} in {masked(storage.url)} was begun with {changes}; {remedy}")
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["validation accuracy"])
    return study


def enqueue_start(study: optuna.Study, ordinal: int, max_cost: float | None) -> None:
    """Enqueue the hand-made trial of this ordinal if there is one and no trial waits. Call it before each `ask`.

    All at once they would come before a trial that was interrupted, and a resumed study would differ.
    """
    own = starts(max_cost)
    if ordinal < len(own) and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(own[ordinal])


def requeue(study: optuna.Study, *, failed: bool) -> None:
    """End orphaned RUNNING trials as FAIL, and enqueue the parameters of interrupted trials; if `failed`, failed ones.

    A trial without all its parameters is sampled again, with equal results; an enqueued one keeps its parameters.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    for trial in _not_repeated(study):
        params = trial.params if RECIPE in trial.user_attrs else trial.system_attrs.get(FIXED)
        if trial.state == TrialState.FAIL and (failed or REASON not in trial.user_attrs) and params:
            study.enqueue_trial(params, user_attrs={AGAIN: trial.number})


def counting(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards `--trials`: completed, pruned, or failed with an error, and not repeated by another."""
    ended, failed = (TrialState.COMPLETE, TrialState.PRUNED), TrialState.FAIL
    return [t for t in _not_repeated(study) if t.state in ended or (t.state == failed and REASON in t.user_attrs)]


def _not_repeated(study: optuna.Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]
