"""Databases and their URIs, as MLflow's store and Optuna's study need them.

They are created whole or not at all, are known for what they are before a library touches them (which would add its
tables to a foreign one and upgrade an old one), and files have room to grow. URIs are masked.
"""

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_transfer.errors import Interrupted, StoreError, write_problem
from fmnist_transfer.store.places import sqlite_uri
from fmnist_transfer.terminal.output import masked

if TYPE_CHECKING:
    import sqlalchemy


PROBE_BYTES = 8 * 2**20  # room for the runs and figures of a small sweep
LOCK_LOOK_SECONDS = 0.02
KEEPALIVE = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 4}  # by the server


@dataclass(frozen=True)
class Schema:
    """Whose database a file is to be, and how its version is known."""

    product: str
    table: str
    """One that each of its databases has."""
    migrations: Path
    """Folder of its alembic scripts."""
    upgrade: str
    """Command for an older database; `{uri}` stands for its URI."""


def open_file(database: Path, schema: Schema, create: Callable[[Path], None]) -> None:
    """Make sure that `database` is a sqlite file of this schema that can be written; made by `create` if missing.

    Raises StoreError, with what is wrong and what to do (the file is then left as it is), or sqlite3.OperationalError.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        probe(database.parent)
        create_once(database, create)
        check_schema(database, schema)
    except OSError as error:
        raise StoreError(write_problem(database, error)) from error
    except sqlite3.OperationalError:  # it is locked, say: the caller decides whether to retry
        raise
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{database}: {error}; move it away, or use another store") from error


def probe(folder: Path) -> None:
    """Raise OSError unless there is room for some more files in the folder."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def create_once(database: Path, create: Callable[[Path], None]) -> None:
    """Make a sqlite file by `create(temporary path)`, under a lock, and rename it into place when it is whole.

    Racing processes and kills leave either no file or a good one.
    """
    import filelock

    if database.exists():
        return
    with filelock.FileLock(f"{database}.lock"):
        if database.exists():
            return
        folder = database.with_name(f".{database.name}.new")
        shutil.rmtree(folder, ignore_errors=True)  # of one who was killed, its journal too
        folder.mkdir()
        temporary = folder / database.name
        create(temporary)
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, database)
        shutil.rmtree(folder, ignore_errors=True)


def check_schema(database: Path, schema: Schema) -> None:
    """Raise StoreError unless the file is of this schema, neither older nor newer than the library at hand."""
    # Asked through sqlite: closing a plain handle of the file would drop the locks of this process's connections.
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            raise StoreError(f"{database} is an empty database; delete it, and the same command makes a new one")
        _check_tables(str(database), tables, schema)
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
    _check_revision(str(database), sqlite_uri(database), revision, schema)


def _check_tables(database: str, tables: set[str], schema: Schema) -> None:
    if not {schema.table, "alembic_version"} <= tables:
        some = ", ".join(sorted(tables)[:3])
        raise StoreError(
            f"{database} is not {schema.product}'s: it holds other tables ({some} ...). It is left as it is; "
            "give another one"
        )


def _check_revision(database: str, uri: str, revision: str | None, schema: Schema) -> None:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(schema.migrations))
    head = scripts.get_current_head()
    if revision == head:
        return
    if revision in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"{database} was made by an older {schema.product} (schema {revision}, now {head}). It is left as it is; "
            f"copy it, then upgrade it: {schema.upgrade.format(uri=uri)}"
        )
    raise StoreError(
        f"{database} was made by a newer {schema.product} (schema {revision}, here {head}). It is left as it is; "
        f"upgrade {schema.product}: pip install --upgrade {schema.product.lower()}"
    )


def open_server(uri: str, schema: Schema, create: Callable[[], None]) -> None:
    """Make sure that the PostgreSQL database at `uri` has this schema; made by `create` if it is empty.

    Racing processes of any machine wait for the one that makes it. Raises StoreError, as `open_file` does, or
    SQLAlchemy's OperationalError.
    """
    import sqlalchemy

    with advisory_lock(uri, f"create {schema.product}") as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        if not tables:
            create()
            return
        _check_tables(masked(uri), tables, schema)
        revision = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    _check_revision(masked(uri), masked(uri), revision, schema)


@contextlib.contextmanager
def advisory_lock(
    uri: str, name: str, should_stop: Callable[[], bool] = lambda: False
) -> "Iterator[sqlalchemy.Connection]":
    """Hold the PostgreSQL lock of this name, which ends with its connection: with this process, or the server.

    A machine that vanishes while it holds the lock loses it within about half a minute. Raises Interrupted.
    """
    import sqlalchemy

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for setting, value in KEEPALIVE.items():
                connection.execute(sqlalchemy.text(f"SET {setting} = {value}"))
            while not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
                if should_stop():
                    raise Interrupted("stopped while another process was beginning a trial")
                time.sleep(random.uniform(0.5, 1.5) * LOCK_LOOK_SECONDS)
            yield connection
    finally:
        engine.dispose()
