"""Open and resume the Optuna study, and define which of its trials count.

The study holds everything about a finished trial, its epochs too, so `study_log` can log it at any later time. A study
has one driver at a time; trials that are RUNNING when it opens belong to a dead driver.
"""

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.store.places import Schema, open_database, sqlite_path, study_uri
from fmnist_transfer.store.retry import RetryPolicy, reason
from fmnist_transfer.terminal.output import masked, warn_of_password
from fmnist_transfer.training.recipe import Recipe
from tuning.space import first_trial

# User attributes of the study and its trials
SETTINGS, EPOCHS, SPEC, RECIPE = "settings", "epochs", "spec", "recipe"
REASON = "reason"  # why a trial failed or diverged; a failed trial without it was interrupted and does not count
AGAIN = "again"  # number of the trial that this one repeats; the repeated trial no longer counts
FIXED = "fixed_params"  # Optuna's private system attribute for an enqueued trial's parameters
SCHEMA = Schema("Optuna", "studies")


def open_storage(
    storage: str | None, folder: Path, retry: RetryPolicy, *, may_write: bool = True
) -> optuna.storages.RDBStorage:
    """Open the study database, `storage` or else `optuna.db` in `folder`; create it if missing.

    Raises StoreError; if `may_write` is False, NoStoreError for a missing database.
    """
    warn_of_password(storage, "a .pgpass file")
    uri = study_uri(storage, folder)
    with _as_store_error(uri):
        retry.call(open_database, uri, SCHEMA, _connect, may_write=may_write)
        return retry.call(_connect, uri)


def _connect(uri: str) -> optuna.storages.RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A server may restart meanwhile, so connections are tested before use.
    options = {} if sqlite_path(uri) else {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
    storage = optuna.storages.RDBStorage(uri, engine_kwargs=options)
    weakref.finalize(storage, _close, storage.scoped_session, storage.engine)
    return storage


def _close(sessions: Any, engine: Any) -> None:
    """Close the connections of an unused storage; Optuna leaves them open."""
    sessions.remove()
    engine.dispose()


@contextlib.contextmanager
def _as_store_error(uri: str) -> Iterator[None]:
    """Turn errors of SQLAlchemy, its drivers and Optuna within the block into StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        text = reason(error) if error.__cause__ else masked(" ".join(str(error).split()))
        raise StoreError(f"cannot open the study database {masked(uri)}: {text}") from error


def find_study(storage: optuna.storages.RDBStorage, name: str) -> optuna.Study | None:
    """The study of that name; None if there is none."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def open_study(storage: optuna.storages.RDBStorage, name: str, settings: dict[str, Any]) -> optuna.Study:
    """Open or create the study; call `begin` next. Raises UsageError if it was begun with other settings."""
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get(SETTINGS, settings)
    differing = [key for key in settings | before if settings.get(key) != before.get(key)]
    if differing:
        changes = ", ".join(f"{key} {before.get(key)} (now {settings.get(key)})" for key in differing)
        raise UsageError(
            f"study {name!r} in {masked(storage.url)} was begun with {changes}. Its trials are kept; give the same "
            "values to continue it, or another --study-name to start anew"
        )
    return study


def begin(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Enqueue the hand-made first trial of a new study. The caller is the study's only driver."""
    if SETTINGS not in study.user_attrs:
        study.enqueue_trial(first_trial(settings["max_mflops"]), skip_if_exists=True)
        study.set_user_attr(SETTINGS, settings)  # last: marks the study as begun


def requeue(study: optuna.Study, *, failed: bool) -> None:
    """End orphaned RUNNING trials as FAIL, and enqueue the parameters of interrupted trials.

    A trial without all its parameters is sampled again, with equal results; an enqueued one keeps its parameters.

    Args:
        failed: also enqueue trials that failed with an error.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    trials = study.get_trials(deepcopy=False)
    again = _numbers_run_again(trials)
    for trial in trials:
        params = trial.params if RECIPE in trial.user_attrs else trial.system_attrs.get(FIXED)
        is_open = trial.state == TrialState.FAIL and (failed or REASON not in trial.user_attrs)
        if is_open and params and trial.number not in again:
            study.enqueue_trial(params, user_attrs={AGAIN: trial.number})


def _numbers_run_again(trials: list[FrozenTrial]) -> set[int]:
    return {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}


def counting(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards `--trials`: completed, pruned, or failed with an error, and not repeated by another."""
    trials = study.get_trials(deepcopy=False)
    again = _numbers_run_again(trials)
    return [
        trial
        for trial in trials
        if trial.number not in again
        and (
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            or (trial.state == TrialState.FAIL and REASON in trial.user_attrs)
        )
    ]


def spec_and_recipe(trial: FrozenTrial) -> tuple[CNN2Spec, Recipe]:
    return CNN2Spec.from_dict(trial.user_attrs[SPEC]), Recipe.from_dict(trial.user_attrs[RECIPE])
