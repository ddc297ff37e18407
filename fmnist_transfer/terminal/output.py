"""Output for the user: notes, tables, durations, JSON; user information in URIs is masked."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fmnist_transfer.errors import StoreError, write_problem

BOLD, RED, YELLOW = "1", "1;31", "1;33"  # ANSI codes


def say(text: str) -> None:
    print(masked(text), flush=True)


def styled(text: str, style: str, stream: TextIO) -> str:
    """Make text bold or coloured on a terminal; plain if piped, or with NO_COLOR (no-color.org) or TERM=dumb."""
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def say_heading(text: str) -> None:
    print(f"\n{styled(masked(text), BOLD, sys.stdout)}", flush=True)


def warn_of_password(uri: str | None, instead: str) -> None:
    """Warn if a URI given as a flag has a password; `instead` names a safer place for it."""
    if uri and masked(uri) != uri and re.search(r"://[^/@]*:[^@]+@|\bpassword=", uri):
        warn(f"every user of this machine can see a password on a command line; use {instead} instead")


def warn(text: str) -> None:
    print(f"{styled('note:', YELLOW, sys.stderr)} {masked(text)}", file=sys.stderr, flush=True)


def print_pairs(title: str, pairs: Mapping[str, str]) -> None:
    say_heading(title)
    width = max(map(len, pairs))
    for key, value in pairs.items():
        say(f"  {key.ljust(width)}  {value}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for i, (first, *rest) in enumerate([columns, *rows]):
        line = masked("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip())
        print(line if i else styled(line, BOLD, sys.stdout), flush=True)


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `3 min 05 s` or `1 h 02 min`."""
    minutes, s = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{s} s"


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write `result` atomically, non-finite numbers as null. Raises StoreError."""
    finite = json.loads(json.dumps(result), parse_constant=lambda name: None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            temporary = Path(folder) / path.name
            temporary.write_text(json.dumps(finite, indent=2) + "\n")
            temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{write_problem(path, error)}; the runs themselves are in the store") from error


# User information ends at the last @ of a database's URI, whose password may hold unescaped / ? and #. A web address
# may have an @ in its path and a colon before its port: hence a password with / or @; a user or token; one with ? or #.
_SECRETS = re.compile(
    r"(\bhttps?://)(?:[^\s/?#@:'\"]+:(?!\d*[/?#])[^\s?#'\"]+|[^\s/?#'\"]+|[^\s/?#@:'\"]+:(?!\d*[/?#])[^\s'\"]+)(?=@)"
    r"|(\b(?!https?:)[a-z][a-z0-9+.-]*://)(?!/)[^\s'\"]+(?=@)"
    r"|(\bpassword=)[^\s'\"&]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Replace user information and passwords of the URIs in a text by `***`."""
    return _SECRETS.sub(r"\1\2\3***", text)
