"""Open a tracking store: a sqlite file (created if missing), a server or a database."""

import logging
import os
import re
import time
from pathlib import Path
from typing import cast

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.database import Schema, open_database
from fmnist_transfer.store.lock import locks_folder
from fmnist_transfer.store.moved_folder import mend
from fmnist_transfer.store.places import ARTIFACTS, POSTGRESQL, default_folder, sqlite_path, store_uri
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy, reason
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked, warn_of_password

HEALTH_SECONDS = 5.0
OLDEST_SERVER = 3  # major version
VERSION = re.compile(r"\d+\.\d+[\w.]*")
SCHEMA = Schema("MLflow", "experiments")
HTTP_DEFAULTS = {  # MLflow's defaults retry silently for four minutes, and a repeated request makes a second run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
POOL_DEFAULTS = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "2", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "8"}


def open_store(
    tracking_uri: str | None, retry: RetryPolicy | None = None, *, mend_copy: bool = False, may_write: bool = True
) -> Store:
    """Open the store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `mlruns/mlflow.db`, created if missing.

    A sqlite store keeps its artifacts in `artifacts/` beside the file, also when moved. Raises StoreError.

    Args:
        mend_copy: point a copied store to its own artifacts instead of the original's.
        may_write: if False, create and repair nothing; raise StoreError instead, NoStoreError if there is no store yet.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would override the parent of every run
    retry = retry or RetryPolicy()
    warn_of_password(tracking_uri, "MLFLOW_TRACKING_URI")
    uri, folder = store_uri(tracking_uri), default_folder()
    if (database := sqlite_path(uri)) is not None:
        folder = database.parent
    elif uri.startswith(("http://", "https://")):
        for name, value in HTTP_DEFAULTS.items():
            os.environ.setdefault(name, value)
        _wait_for_server(uri)
    elif uri.startswith((POSTGRESQL, "mysql", "mssql")):
        for name, value in POOL_DEFAULTS.items():
            os.environ.setdefault(name, value)
    else:
        raise StoreError(
            f"{masked(uri)} is no tracking store: give sqlite:////path/mlflow.db, a database URI or http://"
        )
    if not uri.startswith("http"):
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / ARTIFACTS).as_uri()
    try:
        if database is not None or uri.startswith(POSTGRESQL):
            retry.call(open_database, uri, SCHEMA, lambda uri: _create_tables(uri, folder), may_write=may_write)
        if database is not None:
            retry.call(mend, database, mend_copy=mend_copy, may_write=may_write)
        client = _client(uri)
        retrying = cast(MlflowClient, RetryingClient(client, retry))
        retrying.search_experiments(max_results=1)
    except (MlflowException, ImportError, SQLAlchemyError) as error:
        text = reason(error) if isinstance(error, SQLAlchemyError) else masked(" ".join(str(error).split()))
        raise StoreError(f"cannot open the tracking store {masked(uri)}: {text}") from error
    if may_write:
        locks_folder(uri)
    return Store(uri, folder, retrying, client, retry, tracking_uri is not None)


def _client(uri: str) -> MlflowClient:
    users_uri = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # this also sets MLFLOW_TRACKING_URI, which `open_store` reads
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ |= {"MLFLOW_TRACKING_URI": users_uri} if users_uri is not None else {}
    return MlflowClient(uri, registry_uri=uri)  # not MLFLOW_REGISTRY_URI: models stay with their runs


def _create_tables(uri: str, folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, (folder / ARTIFACTS).as_uri()).engine.dispose()


def _wait_for_server(uri: str) -> None:
    """Raise StoreError if no server answers within `HEALTH_SECONDS`. Access rights show at the first call."""
    address = masked(uri).replace("***@", "").rstrip("/")
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
    deadline = time.monotonic() + HEALTH_SECONDS
    while True:
        try:
            health = requests.get(f"{address}/health", timeout=HEALTH_SECONDS, verify=verify)
            if health.status_code in (502, 503, 504):  # by a proxy before it
                raise requests.exceptions.ConnectionError(f"{health.status_code} {health.reason}")
            _check_version(uri, _get_version(uri, verify))
            return
        except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: not a URL
            if isinstance(error, requests.exceptions.ConnectionError) and time.monotonic() < deadline:
                time.sleep(0.25)
                continue
            proxy = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address))
            by_proxy = " by way of your environment's proxy, which NO_PROXY bypasses" if proxy else ""
            raise StoreError(
                f"no MLflow server at {masked(uri)}{by_proxy} ({reason(error)}); start it and run the same "
                "command again"
            ) from error


def _get_version(uri: str, verify: bool | str) -> requests.Response:
    """Ask for the server's version with the credentials that MLflow itself would use."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return requests.get(
        f"{uri.rstrip('/')}/version",
        auth=(user, password) if user and password else None,
        headers={"Authorization": f"Bearer {token}"} if token and not user else {},
        timeout=HEALTH_SECONDS,
        verify=verify,
    )


def _check_version(uri: str, response: requests.Response) -> None:
    """Raise StoreError for a server that is too old. A server that hides its version passes."""
    version = response.text.strip()
    if response.ok and VERSION.fullmatch(version) and int(version.split(".")[0]) < OLDEST_SERVER:
        raise StoreError(
            f"the server at {masked(uri)} runs MLflow {version}, this command MLflow {mlflow.__version__}. Logged "
            f"models need a server of version {OLDEST_SERVER} or newer"
        )
