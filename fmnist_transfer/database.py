"""Database files and URIs, as MLflow's store and Optuna's study need them: created whole or not at all, and masked."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fmnist_transfer.errors import StoreError

SQLITE = "sqlite:///"  # and a path


def masked(uri: str) -> str:
    """The URI without its user information."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "***@", 1) if "@" in parts.netloc else uri


def sqlite_uri(path: Path) -> str:
    """The URI of an absolute path. Raises StoreError for one that sqlite URIs cannot hold."""
    if any(character in str(path) for character in "?%"):
        raise StoreError(f"{path}: a path with ? or % cannot be written as a sqlite URI; use another folder")
    return f"{SQLITE}{path}"  # not sqlalchemy.URL.create: it quotes # and ü, and not every reader unquotes them


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def create_once(database: Path, create: Callable[[Path], None]) -> None:
    """Make a sqlite file by `create(temporary path)`, under a lock, and rename it into place when it is whole.

    Racing processes and kills leave either no file or a good one. Raises StoreError for what is not sqlite.
    """
    import filelock

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not database.exists():
            with filelock.FileLock(f"{database}.lock"):
                if not database.exists():
                    temporary = database.with_name(f".{database.name}.new")
                    temporary.unlink(missing_ok=True)
                    create(temporary)
                    with contextlib.closing(sqlite3.connect(temporary)) as connection:
                        connection.execute("PRAGMA journal_mode=WAL")
                    with temporary.open("rb") as stream:
                        os.fsync(stream.fileno())
                    os.replace(temporary, database)
        # Asked through sqlite: closing a plain handle of the file would drop the locks of this process's connections.
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
    except OSError as error:
        raise StoreError(f"cannot write {database}: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{database}: {error}; move it away, or use another store") from error
