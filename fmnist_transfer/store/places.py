"""Locations of the store and the study, and their databases: created whole, recognised, mended. Imports no mlflow."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fmnist_transfer.errors import NoStoreError, StoreError, write_problem
from fmnist_transfer.store.roles import EXPERIMENTS
from fmnist_transfer.terminal.output import masked, warn

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of an installed package
SQLITE = "sqlite:///"  # followed by a path
ARTIFACTS, STUDY_FILE = "artifacts", "optuna.db"  # folder and file beside the database
POSTGRESQL = "postgresql"  # followed by :// or +driver://
TABLES = {"MLflow": "experiments", "Optuna": "studies"}  # a table by which a product's database is recognised
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


def sqlite_uri(path: Path) -> str:
    """The sqlite URI of an absolute path. Raises StoreError if the path holds characters that no sqlite URI can."""
    if {"?", "%"} & set(str(path)) or str(path) != str(path).encode("utf-8", "replace").decode():
        raise StoreError(f"{path} cannot be written as a sqlite URI (no ?, no %, only UTF-8); use another folder")
    return f"{SQLITE}{path}"  # not sqlalchemy.URL.create: it quotes # and ü, which not every reader unquotes


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def file_path(uri: str) -> Path | None:
    """The path of a `file:` URI, or a plain path; None for any other URI."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def default_folder() -> Path:
    """The `mlruns` of the checkout that holds this package, else of the current directory."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


def study_uri(given: str | None, folder: Path) -> str:
    """The study database's URI: `given` (a URI or a file's path), else `optuna.db` in `folder`."""
    uri = given or str(folder / STUDY_FILE)
    return uri if "://" in uri else sqlite_uri(Path(uri).absolute())


def store_uri(given: str | None) -> str:
    """The tracking store's URI, a file's path made absolute: `given`, else `MLFLOW_TRACKING_URI`, else the default."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or str(default_folder() / "mlflow.db")
    if "://" not in uri and uri.endswith(".db"):
        uri = f"{SQLITE}{uri}"
    return sqlite_uri(database) if (database := sqlite_path(uri)) else uri


def open_database(uri: str, product: str, create: Callable[[str], None], *, may_write: bool = True) -> None:
    """Check that the database is the product's, and create a missing file or missing tables by `create(uri)`.

    Raises StoreError or the driver's error; NoStoreError if the database is missing but not `may_write`.
    """
    import sqlalchemy.exc

    file, table = sqlite_path(uri), TABLES[product]
    name = file or masked(uri)
    if not may_write and not (file.exists() if file else table_names(uri)):
        raise NoStoreError(f"there is no database {name} yet, or it has no tables")
    if file and may_write:
        create_once(file, create)
    elif not file and not table_names(uri):
        try:
            create(uri)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):  # another command was first
            if not table_names(uri):  # permission denied, for example
                raise
    tables = table_names(uri)
    if not file and table in tables and "alembic_version" not in tables:
        raise ConnectionError("another command is creating its tables")  # the caller retries
    if not {table, "alembic_version"} <= tables:  # MLflow and Optuna would add their tables to any database
        some = ", ".join(sorted(tables)[:3]) or "no table"
        raise StoreError(f"{name} is not {product}'s: it holds {some}. It is unchanged; use another one")


def table_names(uri: str) -> set[str]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def create_once(database: Path, create: Callable[[str], None]) -> None:
    """Create a sqlite file under a lock, by `create(temporary uri)` and a rename: it is complete or not there."""
    import filelock

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent) as probe:  # fails on a full disk
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
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
    except OSError as error:
        raise StoreError(write_problem(database, error)) from error


def mend(database: Path, *, mend_copy: bool, may_write: bool) -> None:
    """If the store's folder was moved, point its runs to the artifacts beside its database, and print a note.

    Raises StoreError if that needs `may_write` or, because the original still exists, `mend_copy`.
    """
    here = database.parent / ARTIFACTS
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        folders = {  # other places are a user's own
            str(place).removesuffix(f"/{name}")
            for name, place in rows
            if name in EXPERIMENTS and str(place).endswith(f"/{ARTIFACTS}/{name}")
        }
        for former in sorted(folders):
            original = file_path(former)
            if original is None or original.resolve() == here.resolve():  # a link to here is the same place
                continue
            if original.exists() and not mend_copy:
                remedy = "Use the original, or add --mend-copy to make the copy independent"
                raise StoreError(f"{database.parent} is a copy: its runs look for artifacts in {original}. {remedy}")
            if original.exists() and not here.exists():
                raise StoreError(f"copy {original} to {here} first: the runs will look for their artifacts there")
            if not may_write:
                raise StoreError(f"{database.parent} was moved from {original.parent}; repair it without --dry-run")
            n = 0
            for table, column in LOCATIONS:
                statement = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?) = 1"
                n += connection.execute(statement, (f"{former}/", f"{here.as_uri()}/", f"{former}/")).rowcount
            warn(f"this store was moved from {original.parent}: {n} artifact paths now point to {here}")
