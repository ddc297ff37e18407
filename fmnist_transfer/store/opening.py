"""Open a tracking store: a sqlite file (created if missing), a server or a database; and open parent runs in it."""

import contextlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from fmnist_transfer.errors import BusyError, StoreError
from fmnist_transfer.store import places
from fmnist_transfer.store.lock import Owner, busy
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy, reason
from fmnist_transfer.store.runs import Run, Store
from fmnist_transfer.terminal.output import masked, warn_of_password

HEALTH_SECONDS, PROBE_SECONDS = 5.0, 10.0
GIVE_WAY_SECONDS = 10.0  # within this time a later starter of a parent run has seen this one and withdrawn
OLDEST_SERVER = 3  # major version
ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # private; without it, a client of a database makes ./mlruns
Runs = Callable[[], Sequence[Run]]


def open_store(
    tracking_uri: str | None, retry: RetryPolicy | None = None, *, mend_copy: bool = False, may_write: bool = True
) -> Store:
    """Open the store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `mlruns/mlflow.db`, created if missing.

    With `mend_copy`, a copied store is pointed to its own artifacts. Raises StoreError; if not `may_write`, creates and
    repairs nothing, and raises NoStoreError. A program of your own should set MLFLOW_HTTP_REQUEST_MAX_RETRIES=0, as the
    commands do: MLflow's client repeats requests, which can make a second run.
    """
    retry = retry or RetryPolicy()
    warn_of_password(tracking_uri, "MLFLOW_TRACKING_URI")
    uri = places.store_uri(tracking_uri)
    database = places.sqlite_path(uri)
    folder = database.parent if database else places.default_folder()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif database is None and not uri.startswith(places.POSTGRESQL):
        raise StoreError(f"{masked(uri)} is no tracking store: give sqlite:////FILE.db, postgresql:// or http://")
    artifacts = (folder / places.ARTIFACTS).as_uri()

    def create(uri: str) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(uri, artifacts).engine.dispose()

    try:
        if not uri.startswith("http"):
            retry.call(places.open_database, uri, "MLflow", create, may_write=may_write)
        if database is not None:
            retry.call(places.mend, database, mend_copy=mend_copy, may_write=may_write)
        os.environ[ARTIFACT_ROOT] = artifacts
        try:
            client = MlflowClient(uri, registry_uri=uri)  # not MLFLOW_REGISTRY_URI: models stay with their runs
        finally:
            del os.environ[ARTIFACT_ROOT]
        retrying = cast(MlflowClient, RetryingClient(client, retry))
        retrying.search_experiments(max_results=1)
    except (MlflowException, ImportError, SQLAlchemyError) as error:
        text = reason(error) if isinstance(error, SQLAlchemyError) else masked(" ".join(str(error).split()))
        raise StoreError(f"cannot open the tracking store {masked(uri)}: {text}") from error
    return Store(uri, folder, retrying, client, retry)


def open_for_work(tracking_uri: str | None, experiment: str, retry: RetryPolicy, *, mend_copy: bool = False) -> Store:
    """Open the store as `open_store` does; write, read and delete one small artifact of the experiment as a check."""
    store = open_store(tracking_uri, retry, mend_copy=mend_copy)
    location = str(store.client.get_experiment(store.experiment(experiment)).artifact_location)
    probe = f"probe-{secrets.token_hex(4)}"
    probing = RetryPolicy(min(PROBE_SECONDS, retry.timeout_seconds), retry.should_stop)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.txt"
        file.write_text(probe)  # an empty upload is chunked, which not every proxy passes on
        try:
            repository = get_artifact_repository(location, store.uri)
            probing.call(repository.log_artifact, str(file), probe)
            probing.call(repository.download_artifacts, f"{probe}/probe.txt", folder)
            with contextlib.suppress(Exception):  # not every kind of place can
                repository.delete_artifacts(probe)
        except Exception as error:  # of any storage's client library, or for want of one
            remedy = "Install that storage's client library, or give access to it to this user or the server"
            raise StoreError(f"cannot write artifacts to {masked(location)} ({reason(error)}). {remedy}") from error
    return store


def _check_server(uri: str) -> None:
    """Raise StoreError if no server answers within `HEALTH_SECONDS`, or if it is too old."""

    def ask_version() -> requests.Response:
        options = {"max_retries": 0, "timeout": HEALTH_SECONDS, "raise_on_status": False}
        response = http_request(get_default_host_creds(uri), "/version", "GET", **options)
        if response.status_code in (502, 503, 504):  # by a proxy before it
            raise requests.exceptions.ConnectionError(f"{response.status_code} {response.reason}")
        return response

    try:
        version = RetryPolicy(HEALTH_SECONDS).call(ask_version)
    except (StoreError, MlflowException, requests.exceptions.RequestException) as error:
        remedy = "start it, or bypass your environment's proxy with NO_PROXY, and run the command again"
        raise StoreError(f"no MLflow server at {masked(uri)} ({reason(error)}); {remedy}") from error
    major = re.match(r"(\d+)\.\d", version.text)  # a server may hide it
    if version.ok and major and int(major[1]) < OLDEST_SERVER:
        text = f"runs MLflow {version.text.strip()}; it must run {OLDEST_SERVER} or newer"
        raise StoreError(f"the server at {masked(uri)} {text}")


def open_parent(
    store: Store, noun: str, *, find: Runs, start: Callable[[], str], params: Mapping[str, Any], take_over: bool
) -> Run:
    """Make the parent run RUNNING with this process as its driver, and return it. The caller holds `locked`.

    `find` returns the active parents of this work, of which the earliest counts, and `start` starts one. A reopened
    one gets missing `params`. Raises BusyError for a driver on another machine, unless it is gone (`take_over`).
    """

    def earliest_first() -> list[Run]:
        return sorted(find(), key=lambda run: (run.info.start_time, run.info.run_id))

    if parents := earliest_first():
        run = parents[0]
        check_owner(places.sqlite_path(store.uri) is None, run, noun, take_over=take_over)
        missing = {key: value for key, value in params.items() if key not in run.data.params}
        # Set the owner before the status: RUNNING with the old owner would look like an orphaned run.
        store.log(run.info.run_id, params=missing, tags=Owner.this_process().to_tags())
        store.client.update_run(run.info.run_id, status="RUNNING")
        return run
    run_id = start()
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    # Each driver looks after it has started its own parent, so at most one driver sees its parent alone.
    while len(parents := earliest_first()) > 1:
        if parents[0].info.run_id != run_id or time.monotonic() > deadline:
            store.client.delete_run(run_id)
            raise BusyError(f"another machine started this {noun} at the same moment")
        time.sleep(0.5)
    return store.client.get_run(run_id)


def check_owner(is_shared: bool, run: Run, noun: str, *, take_over: bool) -> None:
    """Raise BusyError if another driver may be working on the parent run. The caller holds `locked`."""
    # If only this machine uses the store, that lock suffices: a RUNNING run belongs to a dead driver.
    owner = Owner.from_tags(run.data.tags)
    if not is_shared or run.info.status != "RUNNING" or owner == Owner.this_process() or owner.is_dead():
        return
    if owner.is_of_this_machine():
        raise busy(noun, str(owner))
    if not take_over:
        remedy = "Wait for it or stop it; finished work is kept. If that machine is gone for good, add --take-over"
        raise BusyError(f"this {noun} is being run on another machine ({owner}). {remedy}")
