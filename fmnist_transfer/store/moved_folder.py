"""A store whose folder was moved or copied: MLflow stores absolute paths of artifacts. Imports no mlflow."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.places import ARTIFACTS, file_path

LOCATIONS = (  # table, column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


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
