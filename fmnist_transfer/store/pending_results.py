"""Results that the store could not take, kept in files until it can. Imports no mlflow.

A directory for each run: `ending.json` and the files to log, put in place by renaming, so it is there whole or not at
all.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fmnist_transfer.errors import write_problem
from fmnist_transfer.terminal.output import warn

MetricRow = tuple[str, float, int]  # key, value, step
ENDING_FILE, FILES_FOLDER, REJECTED = "ending.json", "files", ".rejected"


@dataclass(frozen=True)
class PendingResult:
    """How a run ends: all that is still to be logged to it, and its status, which is set last."""

    run_id: str
    status: Literal["FINISHED", "FAILED", "KILLED"]
    metrics: Sequence[MetricRow] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Artifacts, by name."""
    time_ms: int = field(default_factory=lambda: int(time.time() * 1_000))
    """Of the metrics: logged twice with the same time, they are there once."""


@dataclass(frozen=True)
class PendingResults:
    """The endings of one store, in `folder`; in `fallback` where that cannot be written, for its disk may be full."""

    folder: Path
    fallback: Path

    def keep(self, ending: PendingResult) -> None:
        """Write the ending; where that fails too, say so."""
        problems = []
        for folder in (self.folder, self.fallback):
            try:
                _keep(folder, ending)
            except OSError as error:
                problems.append(write_problem(folder, error))
            else:
                return
        warn(f"a result that waits for the store is in memory alone: {'; '.join(problems)}")

    def drop(self, run_id: str) -> None:
        """Forget the ending of this run, if there is one."""
        for folder in (self.folder, self.fallback):
            shutil.rmtree(folder / run_id, ignore_errors=True)
            with contextlib.suppress(OSError):  # the others wait there
                folder.rmdir()

    def endings(self) -> Iterator[PendingResult]:
        """Every ending that waits. One that cannot be read is set aside."""
        for folder in (self.folder, self.fallback):
            for file in sorted(folder.glob(f"[!.]*/{ENDING_FILE}")):
                if file.parent.suffix == REJECTED:
                    continue
                try:
                    yield _read(file)
                except FileNotFoundError:  # another command was quicker
                    continue
                except (OSError, ValueError, TypeError, KeyError) as error:
                    self.set_aside(file.parent.name, repr(error))

    def set_aside(self, run_id: str, reason: str) -> None:
        """Keep the ending of this run, but not for the store."""
        for folder in (self.folder, self.fallback):
            rejected = folder / f"{run_id}{REJECTED}"
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(rejected, ignore_errors=True)
                os.replace(folder / run_id, rejected)
                warn(f"a result that waited for the store is not for it ({reason}); it is kept in {rejected}")


def _keep(folder: Path, ending: PendingResult) -> None:
    fields = {f.name: getattr(ending, f.name) for f in dataclasses.fields(ending)}
    del fields["files"]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        new = Path(scratch) / ending.run_id
        (new / FILES_FOLDER).mkdir(parents=True)
        for name, content in ending.files.items():
            _write(new / FILES_FOLDER / name, content)
        _write(new / ENDING_FILE, json.dumps(fields).encode())
        shutil.rmtree(folder / ending.run_id, ignore_errors=True)
        os.replace(new, folder / ending.run_id)


def _read(file: Path) -> PendingResult:
    fields = json.loads(file.read_text())
    fields["metrics"] = [(key, value, step) for key, value, step in fields["metrics"]]
    files = {one.name: one.read_bytes() for one in (file.parent / FILES_FOLDER).iterdir()}
    return PendingResult(**fields, files=files)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
