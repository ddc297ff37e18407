"""Errors for the user, each with the exit status of its kind. Messages say what failed, what is kept, what to do."""

import errno
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
SAME_COMMAND = "run the same command to go on"  # a message with this is followed by the command


def write_problem(path: Path, error: OSError) -> str:
    """Return `cannot write PATH: disk full (3 MB free)`, or the system's reason."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in FULL:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        reason = f"disk full ({shutil.disk_usage(existing).free // 10**6} MB free)"
    return f"cannot write {path}: {reason}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause or context, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class UserError(Exception):
    """Base of errors reported in one line. Exit status 1: finished, but some cells or trials failed."""

    exit_status = 1


class UsageError(UserError):
    exit_status = 2  # a flag or an argument has an invalid value


class DataError(UserError):
    exit_status = 3  # Fashion-MNIST is missing, truncated or altered, or another data set cannot be read


class ModelError(UserError):
    exit_status = 3  # a model is unknown, malformed, or does not fit


class StoreError(UserError):
    exit_status = 4  # the tracking store or the study database cannot be used


class NoStoreError(StoreError):
    """There is no store or study database yet, and the command must not create one."""


class BusyError(UserError):
    exit_status = 5  # another process is running this sweep or study


class Interrupted(UserError):
    """A signal ended the work; finished work is kept. Exit status 130 after SIGINT, else 143."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.exit_status = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)
