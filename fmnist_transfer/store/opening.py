"""Opening a tracking store: a sqlite file, made if need be, a server or a database."""

import dataclasses
import logging
import os
import shlex
import time
from pathlib import Path
from typing import cast

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.database import Schema, open_file, open_server
from fmnist_transfer.store.lock import state_folder
from fmnist_transfer.store.moved_folder import moved_from
from fmnist_transfer.store.pending_results import PendingResults
from fmnist_transfer.store.places import (
    ARTIFACTS,
    POSTGRESQL,
    default_folder,
    short_name,
    sqlite_path,
    sqlite_uri,
    store_uri,
)
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy, reason
from fmnist_transfer.store.roles import EXPERIMENTS
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked, warn_of_password

HEALTH_SECONDS = 5.0
SCHEMA = Schema(
    "MLflow", "experiments", Path(mlflow.__file__).parent / "store" / "db_migrations", "mlflow db upgrade '{uri}'"
)
HTTP_DEFAULTS = {  # without them a client is silent for four minutes, and makes two runs of a request that it repeats
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


POOL_DEFAULTS = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "2", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "8"}


def open_store(tracking_uri: str | None, retry: RetryPolicy | None = None) -> Store:
    """Open the store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `sqlite` under `mlruns/`, made if need be.

    A sqlite file gets its artifacts in `artifacts/` beside it. What an earlier command could not log is logged first.
    Raises StoreError.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would beat the parent of every run
    retry = retry or RetryPolicy()
    warn_of_password(tracking_uri, "MLFLOW_TRACKING_URI")
    uri, folder = store_uri(tracking_uri), default_folder()
    pending = PendingResults(folder / "spool" / short_name(uri), state_folder() / "spool" / short_name(uri))
    if (database := sqlite_path(uri)) is not None:
        folder = database.parent
        pending = dataclasses.replace(pending, folder=folder / "spool")
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / ARTIFACTS).as_uri()
        retry.call(open_file, database, SCHEMA, lambda path: _create_tables(sqlite_uri(path), folder))
        retry.call(_check_place, database)
    elif uri.startswith(("http://", "https://")):
        for name, value in HTTP_DEFAULTS.items():
            os.environ.setdefault(name, value)
        _probe(uri)
    elif uri.startswith((POSTGRESQL, "mysql", "mssql")):
        for name, value in POOL_DEFAULTS.items():
            os.environ.setdefault(name, value)
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / ARTIFACTS).as_uri()
        if uri.startswith(POSTGRESQL):
            _open_server(uri, folder, retry)
    else:
        raise StoreError(
            f"{masked(uri)} is no tracking store: give sqlite:////path/mlflow.db, a database URI or http://"
        )
    try:
        users_uri = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)  # sets the variable, too, where the next store that is opened would look
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ |= {"MLFLOW_TRACKING_URI": users_uri} if users_uri is not None else {}
        client = MlflowClient(uri)
        patient = cast(MlflowClient, RetryingClient(client, retry))
        patient.search_experiments(max_results=1)
    except (MlflowException, ImportError) as error:
        text = str(error).strip().splitlines()[0]
        raise StoreError(f"cannot open the tracking store {masked(uri)}: {masked(text)}") from error
    store = Store(uri, folder, patient, client, retry, pending, tracking_uri is not None)
    store.send_pending()
    return store


def _open_server(uri: str, folder: Path, retry: RetryPolicy) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        retry.call(open_server, uri, SCHEMA, lambda: _create_tables(uri, folder))
    except SQLAlchemyError as error:
        raise StoreError(f"cannot open the tracking store {masked(uri)}: {reason(error)}") from error


def _create_tables(uri: str, folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, (folder / ARTIFACTS).as_uri()).engine.dispose()


def _check_place(database: Path) -> None:
    """Raise StoreError if the folder was moved or copied since its experiments were made."""
    if former := moved_from(database, EXPERIMENTS):
        raise StoreError(
            f"{database.parent} was moved or copied: its runs look for their artifacts in {former[0]}. Nothing is "
            f"lost; mend it with: python -m fmnist_transfer.repair --tracking-uri {shlex.quote(str(database))}"
        )


def _probe(uri: str) -> None:
    """Raise StoreError if no server answers for a while. Whether it lets us in is seen at the first call."""
    address = masked(uri).replace("***@", "").rstrip("/")
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
    deadline = time.monotonic() + HEALTH_SECONDS
    while True:
        try:
            requests.get(f"{address}/health", timeout=HEALTH_SECONDS, verify=verify)
            return
        except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: no URL at all
            if isinstance(error, requests.exceptions.ConnectionError) and time.monotonic() < deadline:
                time.sleep(0.25)
                continue
            raise StoreError(
                f"no MLflow server at {masked(uri)} ({reason(error)}); start it and run the same command again"
            ) from error
