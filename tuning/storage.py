"""The study's database: made or recognised, and patient in every call."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import TrialState

from fmnist_transfer.console import warn_of_password
from fmnist_transfer.database import Schema, masked, open_file, sqlite_path, sqlite_uri
from fmnist_transfer.errors import StoreError
from fmnist_transfer.patience import Patience

SCHEMA = Schema(
    "Optuna",
    "studies",
    Path(inspect.getfile(optuna)).parent / "storages" / "_rdb" / "alembic",
    "optuna storage upgrade --storage '{uri}'",
)


def storage_uri(asked: str | None, folder: Path, patience: Patience) -> str:
    """`--storage`, else `optuna.db` in `folder`; a sqlite file is created whole or not at all. Raises StoreError."""
    warn_of_password(asked, "a .pgpass file")
    uri = asked or sqlite_uri((folder / "optuna.db").absolute())
    if "://" not in uri:
        uri = sqlite_uri(Path(uri).absolute())
    if (database := sqlite_path(uri)) is not None:
        patience.call(open_file, database, SCHEMA, _create)
    return uri


def _create(path: Path) -> None:
    optuna.storages.RDBStorage(sqlite_uri(path)).engine.dispose()


class PatientStorage(optuna.storages.RDBStorage):
    """Optuna's storage, every call of which is retried with patience."""

    def __init__(self, uri: str, patience: Patience):
        self.patience = patience
        database = sqlite_path(uri)
        self.lock = filelock.FileLock(f"{database}.lock") if database else contextlib.nullcontext()
        self.is_within_call = True  # while it is made; `patient_storage` retries that as a whole
        super().__init__(uri)
        self.is_within_call = False


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """Retry the method, but not what it calls: a transaction is tried again from its beginning."""

    @functools.wraps(method)
    def call(storage: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        if storage.is_within_call:
            return method(storage, *args, **kwargs)
        storage.is_within_call = True
        try:
            return storage.patience.call(method, storage, *args, **kwargs)
        finally:
            storage.is_within_call = False

    return call


# Optuna's cache calls some of the private ones.
for _name, _method in vars(optuna.storages.RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__"):
        setattr(PatientStorage, _name, _patient(_method))


def _begin_alone(method: Callable[..., bool]) -> Callable[..., bool]:
    """Begin a trial under a lock: sqlite locks no row, so two workers might both find the same one waiting."""

    @functools.wraps(method)
    def call(storage: PatientStorage, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with storage.lock if state == TrialState.RUNNING else contextlib.nullcontext():
            return method(storage, trial_id, state, values)

    return call


PatientStorage.set_trial_state_values = _begin_alone(PatientStorage.set_trial_state_values)  # type: ignore[method-assign]


def patient_storage(uri: str, patience: Patience) -> PatientStorage:
    """The study database at `uri`, whose calls are retried with `patience`. Raises StoreError."""
    try:
        return patience.call(PatientStorage, uri, patience)
    except StoreError:
        raise
    except Exception as error:  # SQLAlchemy and its drivers raise many kinds
        reason = masked(str(error).strip().splitlines()[0])
        raise StoreError(f"cannot open the study database {masked(uri)}: {reason}") from error
