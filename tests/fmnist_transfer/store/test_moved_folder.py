"""A moved store is mended when it is opened; a copied one only if that is wanted."""

import shutil
from pathlib import Path

import pytest
import synthetic

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Path:
    """A copy of a store with one run and its artifact."""
    run_id = store.start(TRANSFER, "a run")
    store.log_text(run_id, "note.md", "hello")
    store.end(run_id)
    database = synthetic.copy_database(store.folder / "mlflow.db", tmp_path / "elsewhere é" / "mlflow.db")
    shutil.copytree(store.folder / "artifacts", database.parent / "artifacts")
    return database


def places(database: Path) -> set[str]:
    """Where the store's one run looks for its artifacts."""
    (run,) = open_store(str(database)).find(TRANSFER)
    return {run.info.artifact_uri.rpartition(f"/{TRANSFER}/")[0]}


def test_a_store_where_it_was_made_is_left_alone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.start(TRANSFER, "a run")
    assert places(store.folder / "mlflow.db") == {(store.folder / "artifacts").as_uri()}
    assert capsys.readouterr().err == ""


def test_a_moved_store_is_mended_with_one_line(store: Store, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(store.folder)
    with pytest.raises(StoreError):
        open_store(str(copied), may_write=False)
    opened = open_store(str(copied))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert places(copied) == {(copied.parent / "artifacts").as_uri()}
    (run,) = opened.find(TRANSFER)
    assert [file.path for file in opened.client.list_artifacts(run.info.run_id)] == ["note.md"]
    assert capsys.readouterr().err == ""


def test_a_copy_is_mended_only_if_that_is_wanted(store: Store, copied: Path) -> None:
    before = copied.read_bytes()
    with pytest.raises(StoreError, match="--mend-copy") as refused:
        open_store(str(copied))
    assert refused.value.exit_status == 4
    assert copied.read_bytes() == before
    open_store(str(copied), mend_copy=True)
    assert places(copied) == {(copied.parent / "artifacts").as_uri()}
    assert places(store.folder / "mlflow.db") == {(store.folder / "artifacts").as_uri()}


def test_a_link_to_the_store_is_no_other_place(store: Store, tmp_path: Path) -> None:
    store.start(TRANSFER, "a run")
    (tmp_path / "link").symlink_to(store.folder)
    assert places(tmp_path / "link" / "mlflow.db") == {(store.folder / "artifacts").as_uri()}


def test_a_database_that_was_copied_alone_is_not_mended(copied: Path) -> None:
    shutil.rmtree(copied.parent / "artifacts")
    with pytest.raises(StoreError, match=r"copy .* first"):
        open_store(str(copied), mend_copy=True)


def test_a_users_own_place_of_artifacts_is_respected(store: Store, tmp_path: Path) -> None:
    own = (tmp_path / "my own").as_uri()
    store.client.create_experiment(TRANSFER, artifact_location=own)
    open_store(store.uri)
    assert store.client.get_experiment_by_name(TRANSFER).artifact_location == own
