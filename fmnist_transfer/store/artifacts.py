"""A check, before anything is trained, that artifacts can be written and read."""

import contextlib
import secrets
import tempfile
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.retry import RetryPolicy, reason
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked

PROBE_SECONDS = 10.0


def check_artifacts(store: Store, experiment: str) -> None:
    """Write, read and delete one small artifact of the experiment. Raises StoreError, which names the location.

    With a server's `--no-serve-artifacts`, this machine must reach the location itself.
    """
    location = str(store.client.get_experiment(store.experiment(experiment)).artifact_location)
    content, probe = secrets.token_hex(8), f"probe-{secrets.token_hex(4)}"
    retry = RetryPolicy(min(PROBE_SECONDS, store.retry.timeout_seconds), store.retry.should_stop)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.txt"
        file.write_text(content)
        try:
            repository = get_artifact_repository(location)
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
    if read != content:
        raise StoreError(f"{masked(location)} returned different content than was written to it; check that storage")
