"""The study's database: made or recognised, and patient in every call."""

import contextlib
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.database import Schema, advisory_lock, open_file, open_server
from fmnist_transfer.store.places import POSTGRESQL, sqlite_path, sqlite_uri, study_uri
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.output import masked, warn_of_password

# User attributes of trials
AGAIN, LOST = "again", "lost"  # the number of the trial that this one runs again; whether that one's process was lost
FIXED = "fixed_params"  # where Optuna keeps the parameters of an enqueued trial
HEARTBEAT_SECONDS, GRACE_SECONDS = 60, 180  # on a server; shorter ones kill live trials on a busy machine
SCHEMA = Schema(
    "Optuna",
    "studies",
    Path(inspect.getfile(optuna)).parent / "storages" / "_rdb" / "alembic",
    "optuna storage upgrade --storage '{uri}'",
)


def storage_uri(asked: str | None, folder: Path, retry: RetryPolicy) -> str:
    """`--storage`, else `optuna.db` in `folder`; a sqlite file is created whole or not at all. Raises StoreError."""
    warn_of_password(asked, "a .pgpass file")
    uri = study_uri(asked, folder)
    if (database := sqlite_path(uri)) is not None:
        retry.call(open_file, database, SCHEMA, lambda path: _create(sqlite_uri(path)))
    elif uri.startswith(POSTGRESQL):
        with _told(uri):
            retry.call(open_server, uri, SCHEMA, lambda: _create(uri))
    return uri


def _create(uri: str) -> None:
    optuna.storages.RDBStorage(uri).engine.dispose()


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Whatever SQLAlchemy and its drivers raise within the block, as a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        reason = masked(str(error).strip().splitlines()[0])
        raise StoreError(f"cannot open the study database {masked(uri)}: {reason}") from error


class NoRoom(Exception):
    """The study has as many trials as were asked for, begun by whomever."""


class PatientStorage(optuna.storages.RDBStorage):
    """Optuna's storage, every call of which is retried with retry.

    One of a server, where processes of other machines may be at the study, too, has heartbeats; its connections are
    tried before use and few.
    """

    def __init__(self, uri: str, retry: RetryPolicy):
        self.retry = retry
        self.has_room: Callable[[], bool] = lambda: True
        """Whether the study may get another trial; asked when one is begun, by one process at a time."""
        self.is_shared = sqlite_path(uri) is None
        self._within = threading.local()  # heartbeats come from a thread of their own
        self.is_within_call = True  # while it is made; `patient_storage` retries that as a whole
        if self.is_shared:
            pool = {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                super().__init__(
                    uri,
                    pool,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=_enqueue_stale,
                )
        else:
            super().__init__(uri)
        self.is_within_call = False

    @property
    def is_within_call(self) -> bool:
        return getattr(self._within, "call", False)

    @is_within_call.setter
    def is_within_call(self, value: bool) -> None:
        self._within.call = value

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """What no two processes do at once: of this machine on a file, of all machines on PostgreSQL. Not reentrant."""
        if (database := sqlite_path(self.url)) is not None:
            with filelock.FileLock(f"{database}.lock"):
                yield
        elif self.url.startswith(POSTGRESQL):
            with contextlib.ExitStack() as stack:
                lock = "trials of a study"
                self.retry.call(lambda: stack.enter_context(advisory_lock(self.url, lock, self.retry.should_stop)))
                yield
        else:
            yield


def _enqueue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Another machine's trial gave no sign of life for so long that it has been failed: run it again, once."""
    if LOST not in trial.user_attrs:
        params = trial.params if "recipe" in trial.user_attrs else trial.system_attrs.get(FIXED, {})
        study.enqueue_trial(params, user_attrs={AGAIN: trial.number, LOST: True})


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """Retry the method, but not what it calls: a transaction is tried again from its beginning."""

    @functools.wraps(method)
    def call(storage: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        if storage.is_within_call:
            return method(storage, *args, **kwargs)
        storage.is_within_call = True
        try:
            return storage.retry.call(method, storage, *args, **kwargs)
        finally:
            storage.is_within_call = False

    return call


# Optuna's cache calls some of the private ones.
for _name, _method in vars(optuna.storages.RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__"):
        setattr(PatientStorage, _name, _patient(_method))


def _begin_alone(method: Callable[..., Any], is_beginning: Callable[..., bool]) -> Callable[..., Any]:
    """Begin trials one at a time, where there is room.

    sqlite locks no row, so two workers might both find the same one waiting; and on no database would they see each
    other's in time.
    """

    @functools.wraps(method)
    def call(storage: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        if not is_beginning(*args, **kwargs):
            return method(storage, *args, **kwargs)
        with storage.lock():
            if not storage.has_room():
                raise NoRoom
            return method(storage, *args, **kwargs)

    return call


def _is_running(trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
    return state == TrialState.RUNNING


def _is_new(study_id: int, template_trial: FrozenTrial | None = None) -> bool:
    return template_trial is None


PatientStorage.set_trial_state_values = _begin_alone(  # type: ignore[method-assign]
    PatientStorage.set_trial_state_values, _is_running
)
PatientStorage._create_new_trial = _begin_alone(  # type: ignore[method-assign]
    PatientStorage._create_new_trial, _is_new
)  # which the public one and Optuna's cache call


def patient_storage(uri: str, retry: RetryPolicy) -> PatientStorage:
    """The study database at `uri`, whose calls are retried with `retry`. Raises StoreError."""
    with _told(uri):
        return retry.call(PatientStorage, uri, retry)
