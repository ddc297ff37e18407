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

from fmnist_transfer.console import warn
from fmnist_transfer.database import write_problem

MetricRow = tuple[str, float, int]  # key, value, step
ENDING_FILE, FILES_FOLDER, REJECTED = "ending.json", "files", ".rejected"


@dataclass(frozen=True)
class Ending:
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
class Spool:
    """The endings of one store."""

    folder: Path

    def keep(self, ending: Ending) -> None:
        """Write the ending; where that fails too, say so."""
        fields = {f.name: getattr(ending, f.name) for f in dataclasses.fields(ending)}
        del fields["files"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as scratch:
                new = Path(scratch) / ending.run_id
                (new / FILES_FOLDER).mkdir(parents=True)
                for name, content in ending.files.items():
                    _write(new / FILES_FOLDER / name, content)
                _write(new / ENDING_FILE, json.dumps(fields).encode())
                self.drop(ending.run_id)
                os.replace(new, self.folder / ending.run_id)
        except OSError as error:
            warn(f"{write_problem(self.folder, error)}; the result that waits for the store is in memory alone")

    def drop(self, run_id: str) -> None:
        """Forget the ending of this run, if there is one."""
        shutil.rmtree(self.folder / run_id, ignore_errors=True)

    def set_aside(self, run_id: str) -> Path:
        """Keep the ending of this run, but not for the store; where it is then."""
        rejected = self.folder / f"{run_id}{REJECTED}"
        shutil.rmtree(rejected, ignore_errors=True)
        os.replace(self.folder / run_id, rejected)
        return rejected

    def endings(self) -> Iterator[Ending]:
        """Every ending that waits."""
        for file in sorted(self.folder.glob(f"*/{ENDING_FILE}")):
            if file.parent.suffix == REJECTED or file.parent.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):  # another command was quicker
                fields = json.loads(file.read_text())
                fields["metrics"] = [(key, value, step) for key, value, step in fields["metrics"]]
                files = {one.name: one.read_bytes() for one in (file.parent / FILES_FOLDER).iterdir()}
                yield Ending(**fields, files=files)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
