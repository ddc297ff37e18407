"""Locations of the store and the study, and their databases: created whole, recognised, mended. Imports no mlflow."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fmnist_transfer.errors import NoStoreError, StoreError, write_problem
from fmnist_transfer.store.roles import EXPERIMENTS
from fmnist_transfer.terminal.output import masked, warn

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of an installed package
SQLITE = "sqlite:///"  # followed by a path
ARTIFACTS = "artifacts"  # the folder beside the database
POSTGRESQL = "postgresql"  # followed by :// or +driver://
CREATION_SECONDS, CREATION_POLL_SECONDS = 30.0, 0.2
PROBE_BYTES = 8 * 2**20  # enough for the runs and figures of a small sweep
LOCATIONS = (  # (table, column) of MLflow's database that hold absolute artifact paths
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def without_user(uri: str) -> str:
    """The URI without user information and a slash at its end."""
    return masked(uri).replace("***@", "").rstrip("/")


def short_name(uri: str) -> str:
    """A file name for the store at `uri`, equal for all users."""
    return hashlib.sha256(without_user(uri).encode()).hexdigest()[:16]


def sqlite_uri(path: Path) -> str:
    """The sqlite URI of an absolute path. Raises StoreError if the path holds characters that no sqlite URI can."""
    if {"?", "%"} & set(str(path)) or str(path) != str(path).encode("utf-8", "replace").decode():
        raise StoreError(f"{path} cannot be written as a sqlite URI (no ?, no %, only UTF-8); use another folder")
    return f"{SQLITE}{path}"  # not sqlalchemy.URL.create: it quotes # and ü, which not every reader unquotes


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def file_path(uri: str) -> Path:
    """The path of a `file:` URI; a plain path stays."""
    return Path(url2pathname(urlsplit(uri).path))


def default_folder() -> Path:
    """The `mlruns` of the checkout that holds this package, else of the current directory."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


def study_uri(given: str | None, folder: Path) -> str:
    """The study database's URI: `given` (a URI or a file's path), else `optuna.db` in `folder`."""
    uri = given or str(folder / "optuna.db")
    return uri if "://" in uri else sqlite_uri(Path(uri).absolute())


def store_uri(given: str | None) -> str:
    """The tracking store's URI, a file's path made absolute: `given`, else `MLFLOW_TRACKING_URI`, else the default."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or str(default_folder() / "mlflow.db")
    if "://" not in uri and uri.endswith(".db"):
        uri = f"{SQLITE}{uri}"
    database = sqlite_path(uri)
    return uri if database is None else sqlite_uri(database)


class Schema(NamedTuple):
    """The table by which a product's database is recognised; MLflow and Optuna would add tables to a foreign one."""

    product: str
    table: str

    def check(self, name: str, tables: set[str]) -> None:
        """Raise StoreError if a database with these tables is not the product's."""
        if not {self.table, "alembic_version"} <= tables:
            some = ", ".join(sorted(tables)[:3])
            raise StoreError(f"{name} is not {self.product}'s, but holds {some} ...; it is unchanged. Use another one")


def open_database(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool = True) -> None:
    """Check that the database is the product's, and create a missing file or missing tables by `create(uri)`.

    Raises StoreError or the driver's error, and then leaves the database unchanged. If not `may_write`, writes nothing,
    but raises NoStoreError if there is no database yet.
    """
    if (file := sqlite_path(uri)) is None:
        _open_on_server(uri, schema, create, may_write=may_write)
        return
    if not may_write and not file.exists():
        raise NoStoreError(f"there is no {file} yet")
    try:
        if may_write:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=file.parent) as probe:  # fails on a full disk
                probe.write(bytes(PROBE_BYTES))
                probe.flush()
                os.fsync(probe.fileno())
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
    schema.check(str(file), tables)


def _open_on_server(uri: str, schema: Schema, create: Callable[[str], None], *, may_write: bool) -> None:
    """Create the tables of an empty database. If several commands try at once, one succeeds and the others wait."""
    import sqlalchemy.exc

    deadline = time.monotonic() + CREATION_SECONDS
    tables = table_names(uri)
    while "alembic_version" not in tables and time.monotonic() < deadline:
        if tables and schema.table not in tables:
            break  # another program's database, which `check` refuses
        if not may_write:
            raise NoStoreError(f"{masked(uri)} has no tables yet")
        try:
            if not tables:
                create(uri)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):  # another command was first
            if not table_names(uri):  # permission denied, for example
                raise
        time.sleep(CREATION_POLL_SECONDS)
        tables = table_names(uri)
    schema.check(masked(uri), tables)


def table_names(uri: str) -> set[str]:
    if (file := sqlite_path(uri)) is not None:
        # Opened only through sqlite: closing a plain file handle would drop the locks of this process's connections.
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def create_once(database: Path, create: Callable[[str], None]) -> None:
    """Create a sqlite file under a lock, by `create(temporary uri)` and a rename: it is complete or not there."""
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


def mend(database: Path, *, mend_copy: bool, may_write: bool) -> None:
    """If the store's folder was moved, point its runs to the artifacts beside its database, and print a note.

    Raises StoreError if that needs `may_write` or, because the original's artifacts still exist, `mend_copy`.
    """
    here = database.parent / ARTIFACTS
    for former in _former_places(database):
        original = file_path(former)
        if original.exists() and not mend_copy:
            remedy = "Use the original, or add --mend-copy to make the copy independent"
            raise StoreError(f"{database.parent} is a copy: its runs look for their artifacts in {original}. {remedy}")
        if original.exists() and not here.exists():
            raise StoreError(f"copy {original} to {here} first: the runs will look for their artifacts there")
        if not may_write:
            raise StoreError(f"{database.parent} was moved from {original.parent}; repair it without --dry-run")
        n, prefix = 0, f"{former}/"
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            for table, column in LOCATIONS:
                # substr counts from 1: what is kept of a path begins with the slash that ends the prefix.
                statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                n += connection.execute(statement, (here.as_uri(), len(prefix), len(prefix), prefix)).rowcount
        warn(f"this store was moved from {original.parent}: {n} artifact paths now point to {here}")


def _former_places(database: Path) -> list[str]:
    """URIs of former artifact folders: `artifacts/NAME` elsewhere than beside the database; others are a user's."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    folders = {
        location.removesuffix(f"/{name}")
        for name, location in rows
        if name in EXPERIMENTS and str(location).startswith("file:") and location.endswith(f"/{ARTIFACTS}/{name}")
    }
    here = (database.parent / ARTIFACTS).resolve()
    return sorted(folder for folder in folders if file_path(folder).resolve() != here)  # a link to it is the same place
