"""The errors a user meets, each with the exit status of its kind.

A `UserError` is printed as its message alone (no traceback without `--debug`). Every message says what failed,
which object, what survives, and what to do.
"""

import errno
import shutil
import signal
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_problem(path: Path, error: OSError) -> str:
    """`cannot write PATH: disk full (3 MB free)`, or what else the system says."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in FULL:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        reason = f"disk full ({shutil.disk_usage(existing).free // 10**6} MB free)"
    return f"cannot write {path}: {reason}"


SAME_COMMAND = "run the same command to go on"  # in a message: which one, is printed below it


class UserError(Exception):
    """Base of everything a command reports in one line; 1: finished, but some cells or trials failed."""

    exit_status = 1


class UsageError(UserError):
    """A flag or an argument has a value that cannot work."""

    exit_status = 2


class DataError(UserError):
    """Fashion-MNIST is missing, truncated or altered, or another data set cannot be read."""

    exit_status = 3


class ModelError(UserError):
    """A model is unknown, malformed, or does not fit."""

    exit_status = 3


class StoreError(UserError):
    """The tracking store or the study database cannot be used."""

    exit_status = 4


class NoStoreError(StoreError):
    """There is no store or study database yet, and this command must not create one."""


class BusyError(UserError):
    """Another process owns this sweep or this study."""

    exit_status = 5


class Interrupted(UserError):
    """A signal ended the work; finished work is kept. 130 after SIGINT, 143 after the others."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.exit_status = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)
