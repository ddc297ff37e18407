"""The study's database: made or recognised, and patient in every call."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from fmnist_transfer.console import warn
from fmnist_transfer.database import Schema, masked, open_file, sqlite_path, sqlite_uri
from fmnist_transfer.errors import StoreError
from fmnist_transfer.patience import Patience

SCHEMA = Schema(
    "Optuna",
    "studies",
    Path(inspect.getfile(optuna)).parent / "storages" / "_rdb" / "alembic",
    "optuna storage upgrade --storage '{uri}'",
)


def storage_uri(asked: str | None, folder: Path) -> str:
    """`--storage`, else `optuna.db` in `folder`; a sqlite file is created whole or not at all. Raises StoreError."""
    uri = asked or sqlite_uri((folder / "optuna.db").absolute())
    if "://" not in uri:
        uri = sqlite_uri(Path(uri).absolute())
    if masked(uri) != uri and asked:
        warn("a password on a command line is seen by every user of the machine; a .pgpass file hides it")
    if (database := sqlite_path(uri)) is not None:
        open_file(database, SCHEMA, lambda path: optuna.storages.RDBStorage(sqlite_uri(path)).engine.dispose())
    return uri


class PatientStorage(optuna.storages.RDBStorage):
    """Optuna's storage, every call of which is retried with patience."""

    def __init__(self, uri: str, patience: Patience):
        self._patience = patience
        super().__init__(uri)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(storage: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return storage._patience.call(method, storage, *args, **kwargs)

    return call


for _name, _method in vars(optuna.storages.RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__"):
        setattr(PatientStorage, _name, _patient(_method))


@functools.cache
def _storage(uri: str) -> PatientStorage:
    """One for each process, which `patient_storage` lends its patience."""
    try:
        return PatientStorage(uri, Patience())
    except Exception as error:  # SQLAlchemy and its drivers raise many kinds
        reason = masked(str(error).strip().splitlines()[0])
        raise StoreError(f"cannot open the study database {masked(uri)}: {reason}") from error


def patient_storage(uri: str, patience: Patience) -> PatientStorage:
    """The study database at `uri`, whose calls are retried with `patience` from now on. Raises StoreError."""
    storage = _storage(uri)
    storage._patience = patience
    return storage
