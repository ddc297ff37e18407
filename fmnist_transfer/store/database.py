"""Create the databases of MLflow and Optuna atomically, and refuse foreign ones.

MLflow and Optuna would add their tables to a foreign database. They report outdated schemas themselves.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fmnist_transfer.errors import NoStoreError, StoreError, write_problem
from fmnist_transfer.store.places import sqlite_path, sqlite_uri
from fmnist_transfer.terminal.output import masked

CREATION_SECONDS, CREATION_POLL_SECONDS = 30.0, 0.2
PROBE_BYTES = 8 * 2**20  # enough for the runs and figures of a small sweep


@dataclass(frozen=True)
class Schema:
    """The table by which a product's database is recognised."""

    product: str
    table: str

    def is_in(self, tables: set[str]) -> bool:
        """Return whether a database with these tables is the product's."""
        return {self.table, "alembic_version"} <= tables


def open_database(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool = True) -> None:
    """Check that the database is the product's, and create a missing file or missing tables by `create(uri)`.

    Raises StoreError, or the driver's error, and then leaves the database unchanged.

    Args:
        may_write: if False, create nothing and write no probe; raise NoStoreError if there is no database yet.
    """
    if (file := sqlite_path(uri)) is None:
        _open_on_server(uri, schema, create, may_write=may_write)
        return
    if not may_write and not file.exists():
        raise NoStoreError(f"there is no {file} yet")
    try:
        if may_write:
            file.parent.mkdir(parents=True, exist_ok=True)
            probe(file.parent)
            create_once(file, create)
        tables = table_names(uri)
    except OSError as error:
        raise StoreError(write_problem(file, error)) from error
    except sqlite3.OperationalError:  # locked, for example: the caller decides whether to retry
        raise
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{file}: {error}; move it away, or use another store") from error
    if not tables:
        raise StoreError(f"{file} is an empty database; delete it and run the same command to create a new one")
    if not schema.is_in(tables):
        raise _foreign(str(file), schema, tables)


def _open_on_server(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool) -> None:
    """Create the tables of an empty database. If several commands do so, all but one fail and check again."""
    import sqlalchemy.exc

    deadline = time.monotonic() + CREATION_SECONDS
    while not schema.is_in(tables := table_names(uri)):
        is_late = time.monotonic() > deadline
        if tables and (is_late or schema.table not in tables):
            raise _foreign(masked(uri), schema, tables)
        if not may_write:
            raise NoStoreError(f"{masked(uri)} has no tables yet")
        try:
            if not tables:
                create(uri)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):  # a table is there already
            if is_late or not table_names(uri):  # a missing right, say
                raise
        time.sleep(CREATION_POLL_SECONDS)


def _foreign(name: str, schema: Schema, tables: set[str]) -> StoreError:
    some = ", ".join(sorted(tables)[:3])
    return StoreError(
        f"{name} is not {schema.product}'s: it holds other tables ({some} ...). It was not changed; use another one"
    )


def table_names(uri: str) -> set[str]:
    if (file := sqlite_path(uri)) is not None:
        # Opened only through sqlite: closing a plain file handle would drop the locks of this process's connections.
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {str(name) for (name,) in rows}
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def probe(folder: Path) -> None:
    """Raise OSError unless the folder's disk has room for `PROBE_BYTES`."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def create_once(database: Path, create: Callable[[str], None]) -> None:
    """Create a sqlite file by `create(temporary uri)` under a lock, and rename it into place when complete.

    Racing or killed processes leave either no file or a complete one.
    """
    import filelock

    if database.exists():
        return
    with filelock.FileLock(f"{database}.lock"):
        if database.exists():
            return
        folder = database.with_name(f".{database.name}.new")
        shutil.rmtree(folder, ignore_errors=True)  # a killed process left it, with its journal
        folder.mkdir()
        temporary = folder / database.name
        create(sqlite_uri(temporary))
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, database)
        shutil.rmtree(folder, ignore_errors=True)
