"""One driver for each sweep and each study.

On one machine a lock of the operating system, which cannot outlive its owner; on a server, which other machines use
too, what the owner wrote of itself on the run.
"""

import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.places import short_name, sqlite_path

if TYPE_CHECKING:
    import psutil


SAME_START_SECONDS = 2.0  # the system gives starts in hundredths, and the boot in seconds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PIDS = Path("/proc/self/ns/pid")  # a link to pid:[NUMBER]


@dataclass(frozen=True)
class Owner:
    """A process. A pid alone may be another's by now; with its start, counted from the boot, it is not."""

    host: str
    pid: int
    boot: str
    """Name of the host's boot, and of the space of its pids (a container has its own); empty where there is none."""
    started: float
    """Seconds after the boot, which a clock that is set leaves alone; 0 where it is not known."""

    @classmethod
    @functools.cache
    def this_process(cls) -> Self:
        import psutil

        return cls(socket.gethostname(), os.getpid(), _boot(), _started(psutil.Process()))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        started = float(tags.get("process_started", 0))
        return cls(tags.get("host", "unknown"), int(tags.get("pid", 0)), tags.get("boot", ""), started)

    def to_tags(self) -> dict[str, str]:
        return {"host": self.host, "pid": str(self.pid), "boot": self.boot, "process_started": str(self.started)}

    @property
    def name(self) -> str:
        """Eight hexadecimal digits, of this process alone."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    def is_of_this_host(self) -> bool:
        """Whether its machine has this one's name; two may."""
        return self.host == socket.gethostname()

    def is_here(self) -> bool:
        """Whether it is, or was, of this machine since it was started, where its pid means what it means here."""
        return self.is_of_this_host() and self.boot == _boot()

    def is_dead(self) -> bool:
        """Whether it is certain that the process has ended; of another host it never is."""
        import psutil

        if not self.is_of_this_host():
            return False
        if self.boot and self.boot != _boot():
            return True
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return bool(self.started) and abs(_started(process) - self.started) > SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}"


def _boot() -> str:
    if not BOOT_ID.exists():
        return ""
    return f"{BOOT_ID.read_text().strip()} {PIDS.readlink().name}"


def _started(process: "psutil.Process") -> float:
    import psutil

    return round(process.create_time() - psutil.boot_time(), 2)


@contextlib.contextmanager
def locked(uri: str, noun: str, key: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Own `what`, which `key` names in the store at `uri`, until the block ends or this process dies.

    Holds on one machine. Raises BusyError, naming the other owner, if there is one for longer than `wait_seconds`.
    """
    import filelock

    folder = _locks_folder(uri)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f"{key}.owner"
    lock = filelock.FileLock(folder / f"{key}.lock", timeout=wait_seconds)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise busy(noun, *_read(owner)) from None
    try:
        owner.write_text(json.dumps({"since": time.strftime("%F %T")} | asdict(Owner.this_process())))
        yield
    finally:
        lock.release()


def busy(noun: str, owner: Owner | None, since: str = "") -> BusyError:
    """What the second driver is told."""
    driver = f"{owner}, since {since}" if since else owner or "which has not said who it is"
    return BusyError(
        f"another process works on this {noun} ({driver}); wait for it, or stop it first. What it has finished is kept"
    )


def _read(file: Path) -> tuple[Owner | None, str]:
    """The owner, and since when it is."""
    try:
        fields = json.loads(file.read_text())
        since = fields.pop("since")
        return Owner(**fields), since
    except (OSError, ValueError, TypeError, KeyError):  # it has the lock, but has not yet written
        return None, ""


def _locks_folder(uri: str) -> Path:
    """Beside a sqlite file; for a server, among the user's files."""
    if (database := sqlite_path(uri)) is not None:
        return database.parent / "locks"
    return state_folder() / "locks" / short_name(uri)


def state_folder() -> Path:
    """Where this user's programs keep what is no store's."""
    import platformdirs

    return platformdirs.user_state_path("fmnist-transfer")
