"""Side effects of commands on their process: streams, warnings, and the environment of libraries."""

import io
import logging
import os
import shutil
import sys
import warnings
from typing import Any

FEWEST_COLUMNS = 40  # help for a few columns takes for ever to lay out


def prepare_command() -> None:
    """Call this before anything is printed or opened."""
    _fill_standard_streams()
    if shutil.get_terminal_size().columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)
    logging.disable(logging.ERROR)  # the command itself says what a user needs to know of these
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_environment() -> None:
    """Set what libraries read from the environment. Call this before they are imported; the user's settings stay."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend is inherited, but may not be installed here
    for name in ("MLFLOW_RUN_ID", "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH"):  # of another program's runs and paths
        os.environ.pop(name, None)
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


def _fill_standard_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened, a database perhaps, would be written to
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        binary = io.BufferedWriter(_LastingFile(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(binary, encoding, errors="backslashreplace", line_buffering=True))


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
