"""Mend a store whose folder was moved or copied: MLflow stores the places of artifacts as absolute paths.

    python -m fmnist_transfer.repair                      # the checkout's mlruns/, or MLFLOW_TRACKING_URI
    python -m fmnist_transfer.repair --tracking-uri FILE

A sqlite file in; the same file out, its artifacts beside it again. Imports no mlflow.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmnist_transfer.console import run_command, say
from fmnist_transfer.database import file_path, sqlite_path, store_uri
from fmnist_transfer.errors import StoreError

ARTIFACTS = "artifacts"  # the folder beside the database
LOCATIONS = (  # table, column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


@dataclass(frozen=True)
class RepairSettings:
    """Mend a store whose folder was moved or copied: its runs find their files beside the database again. Nothing
    happens to a store that is whole."""

    tracking_uri: str | None = None
    """The store's sqlite file; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    debug: bool = False
    """Show where in the code an error arose."""


def main(settings: RepairSettings) -> int:
    """Repair the store; 0, also where there is nothing to do."""
    uri = store_uri(settings.tracking_uri)
    database = sqlite_path(uri)
    if database is None:
        raise StoreError(f"{uri}: only a sqlite store holds places of this machine")
    if not database.exists():
        raise StoreError(f"{database} is not there")
    try:
        n_changed = repair(database)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{database}: {error}; nothing was changed") from error
    say(f"{n_changed} places now lie in {database.parent / ARTIFACTS}" if n_changed else "Nothing to repair")
    return 0


def moved_from(database: Path, experiments: Sequence[str]) -> list[str]:
    """URIs of the artifact folders of former places, to which the experiments of these names still point.

    Their artifacts were put into `artifacts/NAME` beside the database when they were made, so any other folder that
    ends so is a former place. Other locations are a user's own choice.
    """
    here = (database.parent / ARTIFACTS).resolve()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    folders = {
        location.removesuffix(f"/{name}")
        for name, location in rows
        if name in experiments and str(location).startswith("file:") and location.endswith(f"/{ARTIFACTS}/{name}")
    }
    return sorted(folder for folder in folders if file_path(folder).resolve() != here)  # a link to it is no other place


def repair(database: Path) -> int:
    """Point all that lay in a former place to the folder beside the database, in one transaction; how many it was.

    Raises StoreError if only the database was copied.
    """
    here = (database.parent / ARTIFACTS).as_uri()
    n_changed = 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM experiments")]
        with connection:
            for old in moved_from(database, names):
                if file_path(old).exists() and not file_path(here).exists():
                    raise StoreError(f"copy {file_path(old)} to {file_path(here)} first, where the runs shall find it")
                for table, column in LOCATIONS:
                    n_changed += connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, len(old) + 1, f"{old}/"),
                    ).rowcount
    return n_changed


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(RepairSettings, main, "fmnist_transfer.repair", args)


if __name__ == "__main__":
    sys.exit(command())
