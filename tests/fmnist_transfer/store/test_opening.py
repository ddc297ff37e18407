"""Opening a store: which one, and what is refused."""

import os
import re
from pathlib import Path

import pytest

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.opening import open_store


def test_environment_names_the_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store_path}")
    assert open_store(None).folder == store_path.parent


def test_a_server_that_is_not_there_is_told_soon() -> None:
    with pytest.raises(StoreError, match=r"http://\*\*\*@127\.0\.0\.1:9\b.*refused"):
        open_store("http://user:canary@127.0.0.1:9")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        open_store(str(tmp_path))


def test_opening_a_store_leaves_the_users_choice(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own call would make this store the default of the next one that is opened."""
    for choice in ("sqlite:////elsewhere/mlflow.db", None):
        if choice:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", choice)
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert open_store(str(store_path)).uri.endswith("/mlflow.db")
        assert os.environ.get("MLFLOW_TRACKING_URI") == choice
