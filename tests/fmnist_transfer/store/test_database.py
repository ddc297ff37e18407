"""Databases are made whole or not at all."""

import contextlib
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from fmnist_transfer.store.places import create_once


def make_slowly(uri: str) -> None:
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
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
    def fail(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_once(tmp_path / "a.db", fail)
    assert not (tmp_path / "a.db").exists()
    create_once(tmp_path / "a.db", make_slowly)
