"""Open a tracking store: a sqlite file (created if missing), a server or a database.

MLflow's HTTP client repeats requests, which can make a second run. Commands turn that off (`terminal.process`); another
program can by `MLFLOW_HTTP_REQUEST_MAX_RETRIES=0`.
"""

import contextlib
import os
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import cast

import mlflow
import requests.utils
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store import places
from fmnist_transfer.store.lock import locks_folder
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy, reason, trouble
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked, warn_of_password

HEALTH_SECONDS, PROBE_SECONDS = 5.0, 10.0
OLDEST_SERVER = 3  # major version
SCHEMA = places.Schema("MLflow", "experiments")
ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # private; without it, a client of a database makes ./mlruns


def open_store(
    tracking_uri: str | None, retry: RetryPolicy | None = None, *, mend_copy: bool = False, may_write: bool = True
) -> Store:
    """Open the store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `mlruns/mlflow.db`, created if missing.

    A sqlite store keeps its artifacts in `artifacts/` beside the file, also when moved; with `mend_copy`, a copy is
    pointed to its own. Raises StoreError; if not `may_write`, creates and repairs nothing, and raises NoStoreError.
    """
    retry = retry or RetryPolicy()
    warn_of_password(tracking_uri, "MLFLOW_TRACKING_URI")
    uri, folder = places.store_uri(tracking_uri), places.default_folder()
    if (database := places.sqlite_path(uri)) is not None:
        folder = database.parent
    elif uri.startswith(("http://", "https://")):
        _wait_for_server(uri)
    elif not uri.startswith((places.POSTGRESQL, "mysql", "mssql")):
        raise StoreError(f"{masked(uri)} is no tracking store: give sqlite:////FILE.db, postgresql:// or http://")
    artifacts = (folder / places.ARTIFACTS).as_uri()

    def create(uri: str) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(uri, artifacts).engine.dispose()

    try:
        if database is not None or uri.startswith(places.POSTGRESQL):
            retry.call(places.open_database, uri, SCHEMA, create, may_write=may_write)
        if database is not None:
            retry.call(places.mend, database, mend_copy=mend_copy, may_write=may_write)
        client = _client(uri, artifacts)
        retrying = cast(MlflowClient, RetryingClient(client, retry))
        retrying.search_experiments(max_results=1)
    except (MlflowException, ImportError, SQLAlchemyError) as error:
        text = reason(error) if isinstance(error, SQLAlchemyError) else masked(" ".join(str(error).split()))
        raise StoreError(f"cannot open the tracking store {masked(uri)}: {text}") from error
    if may_write:
        locks_folder(uri)  # raises StoreError
    return Store(uri, folder, retrying, client, retry, tracking_uri is not None)


def open_for_work(tracking_uri: str | None, experiment: str, retry: RetryPolicy, *, mend_copy: bool = False) -> Store:
    """Open the store as `open_store` does, and check that the experiment's artifacts can be written."""
    store = open_store(tracking_uri, retry, mend_copy=mend_copy)
    check_artifacts(store, experiment)
    return store


def _client(uri: str, artifacts: str) -> MlflowClient:
    before = {key: value for key, value in os.environ.items() if key == ARTIFACT_ROOT}
    if not uri.startswith("http"):
        os.environ[ARTIFACT_ROOT] = artifacts
    try:
        return MlflowClient(uri, registry_uri=uri)  # not MLFLOW_REGISTRY_URI: models stay with their runs
    finally:
        os.environ.pop(ARTIFACT_ROOT, None)
        os.environ |= before


def _wait_for_server(uri: str) -> None:
    """Raise StoreError if no server answers within `HEALTH_SECONDS`, or if it is too old."""
    server, deadline = get_default_host_creds(uri), time.monotonic() + HEALTH_SECONDS
    options = {"max_retries": 0, "timeout": HEALTH_SECONDS, "raise_on_status": False}
    while True:
        try:
            health = http_request(server, "/health", "GET", **options)
            if health.status_code in (502, 503, 504):  # by a proxy before it
                raise requests.exceptions.ConnectionError(f"{health.status_code} {health.reason}")
            version = http_request(server, "/version", "GET", **options)
            break
        except (MlflowException, requests.exceptions.RequestException) as error:
            if trouble(error) == "passing" and time.monotonic() < deadline:
                time.sleep(0.25)
                continue
            address = places.without_user(uri)
            proxy = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address))
            by_proxy = " by way of your environment's proxy, which NO_PROXY bypasses" if proxy else ""
            text = f"no MLflow server at {masked(uri)}{by_proxy} ({reason(error)}); start it and run the command again"
            raise StoreError(text) from error
    number = version.text.strip()  # a server may hide it
    if version.ok and re.fullmatch(r"\d+\.\d+[\w.]*", number) and int(number.split(".")[0]) < OLDEST_SERVER:
        versions = f"MLflow {number}, this command MLflow {mlflow.__version__}"
        raise StoreError(f"the server at {masked(uri)} runs {versions}; it must run {OLDEST_SERVER} or newer")


def check_artifacts(store: Store, experiment: str) -> None:
    """Write, read and delete one small artifact of the experiment. Raises StoreError, which names the location."""
    location = str(store.client.get_experiment(store.experiment(experiment)).artifact_location)
    probe = f"probe-{secrets.token_hex(4)}"
    retry = RetryPolicy(min(PROBE_SECONDS, store.retry.timeout_seconds), store.retry.should_stop)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.txt"
        file.write_text(probe)
        try:
            repository = get_artifact_repository(location, store.uri)
            retry.call(repository.log_artifact, str(file), probe)
            read = Path(retry.call(repository.download_artifacts, f"{probe}/probe.txt", folder)).read_text()
            with contextlib.suppress(Exception):  # not every kind of place can
                repository.delete_artifacts(probe)
        except Exception as error:  # of any storage's client library, or for want of one
            remedy = "Give this user access to it, or let the tracking server keep artifacts (--serve-artifacts)"
            if location.startswith("mlflow-artifacts:"):
                remedy = "The server itself must be able to write its --artifacts-destination"
            elif isinstance(error, ImportError):
                remedy = "Install that storage's client library, or let the tracking server keep artifacts"
            raise StoreError(f"cannot write artifacts to {masked(location)} ({reason(error)}). {remedy}") from error
        if read != probe:
            raise StoreError(f"{masked(location)} returned other content than was written to it; check that storage")
