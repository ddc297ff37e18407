"""The store: where it is, what runs carry, how they end."""

import contextlib
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from fmnist_transfer import database
from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import BusyError, Interrupted, StoreError
from fmnist_transfer.store.database import create_once
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import short_name, sqlite_uri
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked


def test_artifacts_lie_beside_a_users_own_database(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = store.start(TRANSFER, "a run")
    store.log_text(run_id, "note.md", "hello")
    assert [file.read_text() for file in (store.folder / "artifacts").rglob("note.md")] == ["hello"]
    assert not (tmp_path / "mlruns").exists()


def test_environment_names_the_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store_path}")
    assert open_store(None).folder == store_path.parent


def test_default_is_the_checkouts_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert database.default_folder() == Path(database.__file__).parents[1] / "mlruns"
    monkeypatch.setattr(database, "PROJECT", tmp_path / "site-packages")
    assert database.default_folder() == tmp_path / "mlruns"


def test_a_run_carries_params_tags_metrics_and_data(store: Store, half: Half) -> None:
    run_id = store.start(TRANSFER, "a run", params={f"p{i}": i for i in range(150)}, tags={"percent": 5})
    store.log(run_id, metrics=[("val/loss", 1 / epoch, epoch) for epoch in range(1, 1_201)])
    store.log_data(run_id, half, "target")
    store.end(run_id)
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert len(run.data.params) == 150
    assert run.data.tags["percent"] == "5"
    assert run.data.tags["pid"] == str(os.getpid())
    assert run.data.tags["package_version"] == "0.1.0"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["git_dirty"] in ("true", "false")
    assert len(store.client.get_metric_history(run_id, "val/loss")) == 1_200
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "Fashion-MNIST classes 56789"
    assert data.dataset.digest == half.data_sha256[:16]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (Interrupted("stop"), "KILLED"), (ValueError("oops"), "FAILED")]
)
def test_runs_end_truthfully(store: Store, error: Exception | None, status: str) -> None:
    run_id = store.start(TRANSFER, "a run")
    with contextlib.suppress(Interrupted, ValueError), store.ending(run_id):
        if error:
            raise error
    assert store.client.get_run(run_id).info.status == status


def test_find_reads_every_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        store.start(TRANSFER, f"run {i}", tags={"role": "cell"})
    search = store.client.search_runs
    monkeypatch.setattr(store.client, "search_runs", lambda *a, **k: search(*a, **k | {"max_results": 2}))
    assert len(store.find(TRANSFER, role="cell")) == 5


def test_a_second_owner_is_refused_and_told_who_the_first_is(store: Store) -> None:
    first, other, second = (locked(store.uri, "sweep", key) for key in "aba")
    with first, other, pytest.raises(BusyError, match=f"pid {os.getpid()}"), second:
        pass
    with locked(store.uri, "sweep", "a"):
        pass


def make_slowly(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE made (pid INTEGER)")
        connection.execute("INSERT INTO made VALUES (?)", (os.getpid(),))


def test_racing_processes_make_a_database_once(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=create_once, args=(database, make_slowly)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM made").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_broken_creation_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_once(tmp_path / "a.db", fail)
    assert not (tmp_path / "a.db").exists()
    create_once(tmp_path / "a.db", make_slowly)


def test_junk_is_no_database(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_text("this is no database at all")
    with pytest.raises(StoreError, match=r"junk\.db: file is not a database; move it away"):
        open_store(str(junk))
    assert junk.read_text() == "this is no database at all"


def test_a_server_that_is_not_there_is_told_soon() -> None:
    with pytest.raises(StoreError, match=r"no MLflow server at http://\*\*\*@127.0.0.1:9 \(.*refused"):
        open_store("http://user:canary@127.0.0.1:9")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no tracking store"):
        open_store(str(tmp_path))


def test_question_mark_cannot_be_in_a_sqlite_path() -> None:
    with pytest.raises(StoreError, match="cannot be written as a sqlite URI"):
        sqlite_uri(Path("/what?/mlflow.db"))


def test_user_information_is_masked() -> None:
    assert masked("postgresql://me:secret@host:5432/db") == "postgresql://***@host:5432/db"
    assert masked("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
    text = "cannot reach http://me:p@s/s@host/api nor 'postgresql://you:canary@db'"
    assert masked(text) == "cannot reach http://***@host/api nor 'postgresql://***@db'"
    assert masked("postgresql://db/x?user=me&password=canary&a=1") == "postgresql://db/x?user=me&password=***&a=1"
    assert short_name("http://me:secret@host") == short_name("http://host/") != short_name("http://host2")


def test_opening_a_store_leaves_the_users_choice(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own call would make this store the default of the next one that is opened."""
    for choice in ("sqlite:////elsewhere/mlflow.db", None):
        if choice:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", choice)
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert open_store(str(store_path)).uri.endswith("/mlflow.db")
        assert os.environ.get("MLFLOW_TRACKING_URI") == choice
