"""What a user sees in the terminal, and the frame every command runs in. Imports no torch and no mlflow.

A command is `run_command(Settings, main)`: parse the flags of a dataclass, call `main(settings)`, turn a `UserError`
into its one line and its exit status.
"""

import dataclasses
import inspect
import json
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from fmnist_transfer.database import masked, write_problem
from fmnist_transfer.errors import SAME_COMMAND, StoreError, UsageError, UserError


class CommandSettings(Protocol):
    """What every command's settings hold."""

    @property
    def debug(self) -> bool: ...


S = TypeVar("S", bound=CommandSettings)
BOLD, RED, YELLOW = "1", "1;31", "1;33"  # of ANSI terminals
FEW_SECONDS = 5.0


def run_command(
    settings_type: type[S], main: Callable[[S], int], module: str, args: Sequence[str] | None = None
) -> int:
    """Parse `args` (default: the command line) into `settings_type` and return `main`'s exit status.

    Args:
        settings_type: a dataclass whose fields are the flags and whose docstrings, its own and those of its fields, are
            the help; it checks its values in `__post_init__` by raising UsageError.
        module: what the user calls after `python -m`.
    """
    import tyro

    given = sys.argv[1:] if args is None else list(args)
    debug = "--debug" in given
    again = shlex.join(["python", "-m", module, *given])
    try:
        description = inspect.cleandoc(settings_type.__doc__ or "")
        settings = tyro.cli(settings_type, prog=f"python -m {module}", description=description, args=args)
        _quiet_libraries()
        if args is None and not sys.warnoptions:  # from a program, its own filters count
            warnings.simplefilter("ignore")
        return main(settings)
    except UserError as error:
        return _report(str(error), error.exit_status, debug, again if SAME_COMMAND in str(error) else "")
    except KeyboardInterrupt:  # before or after the command saw to signals itself
        return _report("stopped; what was finished is kept", 128 + signal.SIGINT, debug)
    except Exception as error:  # whatever else went wrong is one line too
        text = f"{type(error).__name__}: {error}. Finished work is kept; --debug shows where."
        return _report(text, UserError.exit_status, debug)


def _report(text: str, exit_status: int, debug: bool, again: str = "") -> int:
    if debug:
        print(masked(traceback.format_exc()), file=sys.stderr)
    print(f"{_styled('error:', RED, sys.stderr)} {masked(text)}", file=sys.stderr)
    if again:
        print(f"  {masked(again)}", file=sys.stderr)
    return exit_status


def _quiet_libraries() -> None:
    """Before mlflow is imported: no telemetry unless the user turned it on, and no word of its internals."""
    if os.environ.get("DO_NOT_TRACK", "0").lower() not in ("", "0", "false"):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def command_line(module: str, settings: Any, **changes: Any) -> str:
    """The command that has these settings with these changes: every flag that is not at its default."""
    words = ["python", "-m", module]
    for field in dataclasses.fields(settings):
        value = changes.get(field.name, getattr(settings, field.name))
        if value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def check_range(flag: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise UsageError unless low <= value <= high (NaN never is)."""
    if not low <= value <= high:
        allowed = f"{low} or more" if high == float("inf") else f"{low} to {high}"
        raise UsageError(f"{flag} {value}: must be {allowed}")


def check_distinct(flag: str, values: Sequence[Any]) -> None:
    """Raise UsageError for an empty or a repeating list."""
    if not values:
        raise UsageError(f"{flag}: give at least one value")
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise UsageError(f"{flag}: {', '.join(repeated)} is given twice")


def say(text: str) -> None:
    print(masked(text), flush=True)


def _styled(text: str, style: str, stream: TextIO) -> str:
    """Bold or coloured on a terminal; plain where it is piped, or by NO_COLOR (no-color.org) or TERM=dumb."""
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def say_heading(text: str) -> None:
    """What the lines below are about, after an empty one."""
    print(f"\n{_styled(masked(text), BOLD, sys.stdout)}", flush=True)


def warn_of_password(uri: str | None, instead: str) -> None:
    """Say so if a URI that was given as a flag has a password; `instead` is the better place for it."""
    if uri and masked(uri) != uri and re.search(r"://[^/@]*:[^@]+@|\bpassword=", uri):
        warn(f"a password on a command line is seen by every user of the machine; {instead} hides it")


def warn(text: str) -> None:
    """A line that is no result: on the error stream."""
    print(f"{_styled('note:', YELLOW, sys.stderr)} {masked(text)}", file=sys.stderr, flush=True)


def print_pairs(title: str, pairs: Mapping[str, str]) -> None:
    """A heading, and below it a line for each pair, aligned."""
    say_heading(title)
    width = max(map(len, pairs))
    for key, value in pairs.items():
        say(f"  {key.ljust(width)}  {value}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], groups: Mapping[str, int] | None = None) -> None:
    """Plain aligned columns, the first to the left and the others to the right.

    groups: titles above the columns after the first -> how many columns each is of.
    """
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    if groups:
        line, column = " " * widths[0], 1
        for title, n in groups.items():
            room = sum(widths[column : column + n]) + 2 * (n - 1)
            widths[column] += max(0, len(title) - room)
            line += "  " + title.rjust(max(room, len(title)))
            column += n
        print(_styled(line, BOLD, sys.stdout))
    for i, row in enumerate([columns, *rows]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        line = masked("  ".join(cells).rstrip())
        print(line if i else _styled(line, BOLD, sys.stdout), flush=True)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `1 h 02 min`."""
    minutes, s = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{s} s"


def about(seconds: float) -> str:
    """`about 3 min 05 s`, `about 56 min`; less than a look at the clock is worth is `a few seconds`."""
    if seconds < FEW_SECONDS:
        return "a few seconds"
    return f"about {duration(seconds) if seconds < 600 else duration(60 * round(seconds / 60)).removesuffix(' 00 s')}"


def counted(n: int, what: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n} {what}" + "s" * (n != 1)


class Stopwatch:
    """Wall time by stage, from its creation on."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        """Seconds until something happened for the first time."""
        self._laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, event: str) -> None:
        """`event` happens now, unless it did before."""
        self.marks.setdefault(event, time.perf_counter() - self._start)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage."""
        return dict(self._laps)

    @property
    def seconds(self) -> float:
        return sum(self._laps.values())

    def __str__(self) -> str:
        stages = [f"{stage} {duration(seconds)}" for stage, seconds in self._laps.items() if round(seconds)]
        return ": ".join([duration(self.seconds), ", ".join(stages)] if stages else [duration(self.seconds)])


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write `result` atomically. Numbers that are not finite become null. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            temporary = Path(folder) / path.name
            with temporary.open("w") as stream:
                json.dump(_finite(result), stream, indent=2, allow_nan=False)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{write_problem(path, error)}; the runs themselves are in the store") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
