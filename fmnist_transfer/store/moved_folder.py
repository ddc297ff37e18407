"""A store whose folder was moved or copied: MLflow stores absolute paths of artifacts. Imports no mlflow."""

import contextlib
import sqlite3
from pathlib import Path

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.places import ARTIFACTS, file_path
from fmnist_transfer.store.roles import EXPERIMENTS
from fmnist_transfer.terminal.output import warn

LOCATIONS = (  # table, column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def mend(database: Path, *, mend_copy: bool, may_write: bool) -> None:
    """Point the runs of a store whose folder was moved to the artifacts beside its database, and say so.

    Raises StoreError for a copy, whose runs still find the original's artifacts, unless `mend_copy`; and where nothing
    may be written.
    """
    for former in _former_places(database):
        original, here = file_path(former), database.parent / ARTIFACTS
        if original.exists() and not mend_copy:
            raise StoreError(
                f"{database.parent} is a copy: its runs look for their artifacts in {original}. Use the original, or "
                "add --mend-copy, which makes the copy independent"
            )
        if original.exists() and not here.exists():
            raise StoreError(f"copy {original} to {here} first, where the runs shall find it")
        if not may_write:
            raise StoreError(
                f"{database.parent} was moved from {original.parent}; a command without --dry-run mends it"
            )
        n_changed = _point_to(database, former, here.as_uri())
        warn(f"this store was in {original.parent}: {n_changed} places of artifacts now lie in {here}")


def _former_places(database: Path) -> list[str]:
    """URIs of the artifact folders of former places, to which our experiments still point.

    Their artifacts were put into `artifacts/NAME` beside the database when they were made, so any other folder that
    ends so is a former place. Other locations are a user's own choice.
    """
    here = (database.parent / ARTIFACTS).resolve()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    folders = {
        location.removesuffix(f"/{name}")
        for name, location in rows
        if name in EXPERIMENTS and str(location).startswith("file:") and location.endswith(f"/{ARTIFACTS}/{name}")
    }
    return sorted(folder for folder in folders if file_path(folder).resolve() != here)  # a link to it is no other place


def _point_to(database: Path, former: str, here: str) -> int:
    """Replace the folder in all places, in one transaction; the number of places."""
    n_changed = 0
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in LOCATIONS:
            n_changed += connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (here, len(former) + 1, len(former) + 1, f"{former}/"),
            ).rowcount
    return n_changed
