"""Mend a store whose folder was moved or copied: MLflow stores the places of artifacts as absolute paths.

    python -m fmnist_transfer.repair                      # the checkout's mlruns/, or MLFLOW_TRACKING_URI
    python -m fmnist_transfer.repair --tracking-uri FILE

A sqlite file in; the same file out, its artifacts beside it again. Imports no mlflow.
"""

import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_transfer.errors import StoreError
from fmnist_transfer.flags import CommandFlags, Flags
from fmnist_transfer.store.moved_folder import repair
from fmnist_transfer.store.places import ARTIFACTS, sqlite_path, store_uri
from fmnist_transfer.terminal.command import run_command
from fmnist_transfer.terminal.output import say


@dataclass(frozen=True)
class RepairFlags(Flags):
    tracking_uri: str | None = None
    """The store's sqlite file; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""


@dataclass(frozen=True)
class RepairSettings(CommandFlags, RepairFlags):
    """Mend a store whose folder was moved or copied: its runs find their files beside the database again. Nothing
    happens to a store that is whole."""


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


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(RepairSettings, main, "fmnist_transfer.repair", args)


if __name__ == "__main__":
    sys.exit(command())
