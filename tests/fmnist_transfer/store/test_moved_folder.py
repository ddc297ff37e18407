"""A moved store: found out when it is opened, and mended in one transaction."""

import shutil
from pathlib import Path

import pytest
import synthetic

from fmnist_transfer.errors import StoreError
from fmnist_transfer.repair import RepairSettings, main
from fmnist_transfer.store.moved_folder import moved_from, repair
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import EXPERIMENTS, TRANSFER
from fmnist_transfer.store.runs import Store


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Path:
    """A copy of a store with one run and its artifact, without the original's folder."""
    run_id = store.start(TRANSFER, "a run")
    store.log_text(run_id, "note.md", "hello")
    store.end(run_id)
    database = synthetic.copy_database(store.folder / "mlflow.db", tmp_path / "elsewhere é" / "mlflow.db")
    shutil.copytree(store.folder / "artifacts", database.parent / "artifacts")
    return database


def test_a_store_where_it_was_made_is_left_alone(store: Store) -> None:
    store.start(TRANSFER, "a run")
    database = store.folder / "mlflow.db"
    assert moved_from(database, EXPERIMENTS) == []
    assert repair(database) == 0


def test_a_copied_store_is_refused_until_it_is_mended(
    store: Store, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (store.folder / "artifacts").as_uri()
    assert moved_from(copied, EXPERIMENTS) == [old]
    with pytest.raises(StoreError, match="was moved or copied: its runs look for their artifacts in file:///"):
        open_store(str(copied))
    assert main(RepairSettings(tracking_uri=str(copied))) == 0
    assert f"2 places now lie in {copied.parent / 'artifacts'}" in capsys.readouterr().out
    opened = open_store(str(copied))
    (run,) = opened.find(TRANSFER)
    assert run.info.artifact_uri.startswith((copied.parent / "artifacts").as_uri())
    assert [file.path for file in opened.client.list_artifacts(run.info.run_id)] == ["note.md"]
    assert store.client.get_run(run.info.run_id).info.artifact_uri.startswith(old)


def test_a_link_to_the_store_is_no_other_place(store: Store, tmp_path: Path) -> None:
    store.start(TRANSFER, "a run")
    (tmp_path / "link").symlink_to(store.folder)
    assert moved_from(tmp_path / "link" / "mlflow.db", EXPERIMENTS) == []


def test_a_database_that_was_copied_alone_is_not_mended(copied: Path) -> None:
    shutil.rmtree(copied.parent / "artifacts")
    with pytest.raises(StoreError, match=r"copy .* first, where the runs shall find it"):
        repair(copied)


def test_a_users_own_place_of_artifacts_is_respected(store: Store, tmp_path: Path) -> None:
    store.client.create_experiment(TRANSFER, artifact_location=(tmp_path / "my own").as_uri())
    assert moved_from(store.folder / "mlflow.db", EXPERIMENTS) == []
