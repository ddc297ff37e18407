"""Run a command: flags, help, exit status. Imports no torch and no mlflow."""

import dataclasses
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fmnist_transfer.errors import SAME_COMMAND, Interrupted, StoreError, UsageError, UserError, causes
from fmnist_transfer.terminal.output import RED, masked, styled
from fmnist_transfer.terminal.process import prepare_command, set_environment

STORE_LIBRARIES = {"mlflow", "optuna", "sqlalchemy", "sqlite3", "psycopg", "requests", "urllib3"}
S = TypeVar("S")


def run_command(flags: type[S], main: Callable[[S], int], module: str, args: Sequence[str] | None = None) -> int:
    """Parse `args` (default: the command line) into a dataclass; return the exit status of `main` or its UserError.

    Fields are the flags, docstrings the help. `__post_init__` raises UsageError for bad values.
    """
    if args is None:
        prepare_command()
    import tyro

    command = ["python", "-m", module, *(sys.argv[1:] if args is None else args)]
    try:
        settings = tyro.cli(flags, prog=f"python -m {module}", args=args)
        set_environment()
        return main(settings)
    except UserError as error:
        return _report(error, command)
    except KeyboardInterrupt:  # outside a StopSignal
        return _report(Interrupted("stopped; finished work is kept"), command)
    except Exception as error:  # reported in one line, too
        libraries = {type(cause).__module__.partition(".")[0] for cause in causes(error)}
        kind = StoreError if libraries & STORE_LIBRARIES else UserError
        return _report(kind(f"{type(error).__name__}: {error}. Finished work is kept; --debug shows where."), command)


def _report(error: UserError, command: Sequence[str]) -> int:
    if "--debug" in command:
        print(masked(traceback.format_exc()), file=sys.stderr)
    print(f"{styled('error:', RED, sys.stderr)} {masked(str(error))}", file=sys.stderr)
    if SAME_COMMAND in str(error):
        print(f"  {masked(shlex.join(command))}", file=sys.stderr)
    return error.exit_status


def command_line(module: str, settings: Any, **changes: Any) -> str:
    """Return the command with these settings and changes; flags at their default are left out."""
    words = ["python", "-m", module]
    for field in dataclasses.fields(settings):
        value, flag = changes.get(field.name, getattr(settings, field.name)), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def check_range(flag: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise UsageError unless low <= value <= high (NaN never is)."""
    if not low <= value <= high:
        allowed = f"{low} or more" if high == float("inf") else f"{low} to {high}"
        raise UsageError(f"{flag} {value}: must be {allowed}")


def check_distinct(flag: str, values: Sequence[Any]) -> None:
    """Raise UsageError for an empty list or a repeated value."""
    if not values:
        raise UsageError(f"{flag}: give at least one value")
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise UsageError(f"{flag}: {', '.join(repeated)} is given twice")
