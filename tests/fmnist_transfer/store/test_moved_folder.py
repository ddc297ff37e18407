"""Stores that are not to be mended; those that are, are in `tests/faults/test_fault_store.py`."""

import re
from pathlib import Path

import pytest
import synthetic

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store


def places(database: Path) -> set[str]:
    """Where the store's one run looks for its artifacts."""
    (run,) = open_store(str(database)).find(TRANSFER)
    return {run.info.artifact_uri.rpartition(f"/{TRANSFER}/")[0]}


def test_a_store_where_it_was_made_is_left_alone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.start(TRANSFER, "a run")
    assert places(store.folder / "mlflow.db") == {(store.folder / "artifacts").as_uri()}
    assert capsys.readouterr().err == ""


def test_a_link_to_the_store_is_no_other_place(store: Store, tmp_path: Path) -> None:
    store.start(TRANSFER, "a run")
    (tmp_path / "link").symlink_to(store.folder)
    assert places(tmp_path / "link" / "mlflow.db") == {(store.folder / "artifacts").as_uri()}


def test_a_database_that_was_copied_alone_is_not_mended(store: Store, tmp_path: Path) -> None:
    store.client.log_text(store.start(TRANSFER, "a run"), "hello", "note.md")
    copied = synthetic.copy_database(store.folder / "mlflow.db", tmp_path / "elsewhere é" / "mlflow.db")
    before = copied.read_bytes()
    with pytest.raises(StoreError, match=re.escape(str(copied.parent))):
        open_store(str(copied), mend_copy=True)
    assert copied.read_bytes() == before


def test_a_users_own_place_of_artifacts_is_respected(store: Store, tmp_path: Path) -> None:
    own = (tmp_path / "my own").as_uri()
    store.client.create_experiment(TRANSFER, artifact_location=own)
    open_store(store.uri)
    assert store.client.get_experiment_by_name(TRANSFER).artifact_location == own
