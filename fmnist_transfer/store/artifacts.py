"""Check, before anything is trained, that artifacts can be written and read."""

import contextlib
import secrets
import tempfile
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.retry import reason
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked


def check_artifacts(store: Store, experiment: str) -> None:
    """Write, read and delete one small artifact of the experiment. Raises StoreError, which names the location.

    With a server's `--no-serve-artifacts`, this machine must reach the location itself.
    """
    location = str(store.client.get_experiment(store.experiment(experiment)).artifact_location)
    content, folder_there = secrets.token_hex(8), f"probe-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.txt"
        file.write_text(content)
        try:
            repository = get_artifact_repository(location)
            store.retry.call(repository.log_artifact, str(file), folder_there)
            read = Path(store.retry.call(repository.download_artifacts, f"{folder_there}/probe.txt")).read_text()
            with contextlib.suppress(Exception):  # not every kind of storage supports deletion
                repository.delete_artifacts(folder_there)
        except StoreError:
            raise
        except Exception as error:  # each storage's client library has its own errors, and may be missing
            raise StoreError(
                f"cannot write artifacts to {masked(location)} ({type(error).__name__}: {reason(error)}). Give this "
                "user access and install that storage's client library, or let the tracking server keep them "
                "(mlflow server --serve-artifacts)"
            ) from error
    if read != content:
        raise StoreError(f"{masked(location)} returned different content than was written to it; check that storage")
