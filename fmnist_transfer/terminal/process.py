"""Side effects of commands on their process: streams, limits, warnings, and the environment of libraries."""

import contextlib
import io
import logging
import os
import shutil
import sys
import warnings
from typing import Any

from fmnist_transfer.errors import UsageError

FEWEST_COLUMNS = 40  # help for a few columns takes for ever to lay out
OWN_FILES, FILES_PER_WORKER = 64, 32  # with room to spare: a driver of two workers had 100 open, of four 157


def prepare_command() -> None:
    """Call this before anything is printed or opened."""
    _fill_standard_streams()
    if shutil.get_terminal_size().columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)
    _allow_many_files()
    logging.disable(logging.ERROR)  # the command itself says what a user needs to know of these
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_environment() -> None:
    """Set what libraries read from the environment. Call this before they are imported; the user's settings stay."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend is inherited, but may not be installed here
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # else four minutes of retries, and second runs
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default: num_gpus=0 hides none
    if os.environ.get("DO_NOT_TRACK", "0").lower() not in ("", "0", "false"):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def check_open_files(n_workers: int) -> None:
    """Raise UsageError if the workers need more open files than this process may have."""
    with contextlib.suppress(ImportError):
        import resource

        limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], OWN_FILES + FILES_PER_WORKER * n_workers
        if n_workers > 1 and resource.RLIM_INFINITY != limit < needed:
            raise UsageError(
                f"{n_workers} workers need {needed} open files, and {limit} are allowed: allow more by ulimit -n "
                f"{needed}, or use --workers {max(1, (limit - OWN_FILES) // FILES_PER_WORKER)}"
            )


def _fill_standard_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened, a database perhaps, would be written to
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _lasting(1, sys.stdout), _lasting(2, sys.stderr)


def _lasting(number: int, present: Any) -> io.TextIOWrapper:
    if present:
        with contextlib.suppress(OSError):
            present.flush()
    encoding = getattr(present, "encoding", None) or "utf-8"
    binary = io.BufferedWriter(_LastingFile(number, "w", closefd=False))
    return io.TextIOWrapper(binary, encoding, errors="backslashreplace", line_buffering=True)


class _LastingFile(io.FileIO):
    """A stream that becomes the null device when its reader has gone or its disk is full."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(content)


def _allow_many_files() -> None:
    """Raise the soft limit on open files, as far as the hard limit allows."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for many in (65_536, 10_240):  # macOS grants no more than the second
            wanted = many if hard == resource.RLIM_INFINITY else min(many, hard)
            if soft in (resource.RLIM_INFINITY, wanted) or soft > wanted:
                return
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return
