"""One driver for each sweep and each study.

On one machine a lock of the operating system, which cannot outlive its owner; on a server, which other machines use
too, what the owner wrote of itself on the run.
"""

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fmnist_transfer.database import short_name, sqlite_path
from fmnist_transfer.errors import BusyError

SAME_START_SECONDS = 2.0  # a clock that was set moves the start of a process, too


@dataclass(frozen=True)
class Owner:
    """A process. A pid alone may be another's by now; with its start it is not, after a reboot neither."""

    host: str
    pid: int
    started: float
    """Seconds since the epoch; 0 where it is not known."""

    @classmethod
    @functools.cache
    def this_process(cls) -> Self:
        import psutil

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        return cls(tags.get("host", "unknown"), int(tags.get("pid", 0)), float(tags.get("process_started", 0)))

    def to_tags(self) -> dict[str, str]:
        return {"host": self.host, "pid": str(self.pid), "process_started": str(self.started)}

    def is_dead(self) -> bool:
        """Whether it is certain that the process has ended; of another host it never is."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return True
        return bool(self.started) and abs(started - self.started) > SAME_START_SECONDS

    def __str__(self) -> str:
        since = f", since {time.strftime('%F %T', time.localtime(self.started))}" if self.started else ""
        return f"host {self.host}, pid {self.pid}{since}"


@contextlib.contextmanager
def owning(uri: str, what: str, key: str) -> Iterator[None]:
    """Own `what`, which `key` names in the store at `uri`, until the block ends or this process dies.

    Holds on one machine. Raises BusyError, naming the other owner.
    """
    import filelock

    folder = _locks_folder(uri)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f"{key}.owner"
    lock = filelock.FileLock(folder / f"{key}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise busy(what, _read(owner)) from None
    try:
        owner.write_text(json.dumps(asdict(Owner.this_process())))
        yield
    finally:
        lock.release()


def busy(what: str, owner: Owner | None) -> BusyError:
    """What the second driver is told."""
    return BusyError(
        f"another process works on this {what} ({owner or 'which has not said who it is'}); wait for it, or stop it "
        "first. What it has finished is kept"
    )


def _read(file: Path) -> Owner | None:
    try:
        return Owner(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # it has the lock, but has not yet written
        return None


def _locks_folder(uri: str) -> Path:
    """Beside a sqlite file; for a server, among the user's files."""
    if (database := sqlite_path(uri)) is not None:
        return database.parent / "locks"
    import platformdirs

    return platformdirs.user_state_path("fmnist-transfer") / "locks" / short_name(uri)
