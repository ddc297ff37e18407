"""Databases of MLflow's store and Optuna's study: created whole or not at all, and recognised before they are used.

A library would add its tables to a foreign database. Whether a schema is too old or too new, the library says itself.
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
PROBE_BYTES = 8 * 2**20  # room for the runs and figures of a small sweep


@dataclass(frozen=True)
class Schema:
    """How a product's database is recognised: each has this table."""

    product: str
    table: str

    def is_in(self, tables: set[str]) -> bool:
        """Return whether a database with these tables is the product's."""
        return {self.table, "alembic_version"} <= tables


def open_database(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool = True) -> None:
    """Make sure that the product may use the database; `create(uri)` makes a missing file or missing tables.

    Raises StoreError, with what is wrong and what to do (the database is then left as it is), or the driver's error.

    Args:
        may_write: if False, create nothing and do not try the disk; raise NoStoreError if there is nothing yet.
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
    except sqlite3.OperationalError:  # it is locked, say: the caller decides whether to retry
        raise
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{file}: {error}; move it away, or use another store") from error
    if not tables:
        raise StoreError(f"{file} is an empty database; delete it, and the same command makes a new one")
    if not schema.is_in(tables):
        raise _foreign(str(file), schema, tables)


def _open_on_server(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool) -> None:
    """Create the tables of an empty database. Of commands that do so at once, all but one fail and look again."""
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
        f"{name} is not {schema.product}'s: it holds other tables ({some} ...). It is left as it is; give another one"
    )


def table_names(uri: str) -> set[str]:
    """Names of the database's tables."""
    if (file := sqlite_path(uri)) is not None:
        # Asked through sqlite: closing a plain handle of the file would drop the locks of this process's connections.
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
    """Raise OSError unless there is room for some more files in the folder."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def create_once(database: Path, create: Callable[[str], None]) -> None:
    """Make a sqlite file by `create(temporary uri)`, under a lock, and rename it into place when it is whole.

    Racing processes and kills leave either no file or a good one.
    """
    import filelock

    if database.exists():
        return
    with filelock.FileLock(f"{database}.lock"):
        if database.exists():
            return
        folder = database.with_name(f".{database.name}.new")
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed, its journal too
        folder.mkdir()
        temporary = folder / database.name
        create(sqlite_uri(temporary))
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, database)
        shutil.rmtree(folder, ignore_errors=True)
