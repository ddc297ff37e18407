"""Repair a store whose folder was moved or copied, since MLflow stores absolute artifact paths. Imports no mlflow."""

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
    """If the store's folder was moved, point its runs to the artifacts beside its database, and print a note.

    Raises StoreError if the store is a copy (the original's artifacts still exist), unless `mend_copy`; and if a
    repair is needed but `may_write` is False.
    """
    for former in _former_places(database):
        original, here = file_path(former), database.parent / ARTIFACTS
        if original.exists() and not mend_copy:
            raise StoreError(
                f"{database.parent} is a copy: its runs look for their artifacts in {original}. Use the original, or "
                "add --mend-copy to make the copy independent"
            )
        if original.exists() and not here.exists():
            raise StoreError(f"copy {original} to {here} first: the runs will look for their artifacts there")
        if not may_write:
            raise StoreError(
                f"{database.parent} was moved from {original.parent}; run a command without --dry-run to repair it"
            )
        n_changed = _point_to(database, former, here.as_uri())
        warn(f"this store was moved from {original.parent}: {n_changed} artifact paths now point to {here}")


def _former_places(database: Path) -> list[str]:
    """URIs of former artifact folders to which our experiments still point.

    Artifacts are created in `artifacts/NAME` beside the database, so another folder of that form is a former place.
    Locations of another form are a user's choice.
    """
    here = (database.parent / ARTIFACTS).resolve()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    folders = {
        location.removesuffix(f"/{name}")
        for name, location in rows
        if name in EXPERIMENTS and str(location).startswith("file:") and location.endswith(f"/{ARTIFACTS}/{name}")
    }
    return sorted(folder for folder in folders if file_path(folder).resolve() != here)  # a link to it is the same place


def _point_to(database: Path, former: str, here: str) -> int:
    """Replace the folder in all `LOCATIONS` in one transaction; return the number of changed rows."""
    n_changed = 0
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in LOCATIONS:
            n_changed += connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (here, len(former) + 1, len(former) + 1, f"{former}/"),
            ).rowcount
    return n_changed
