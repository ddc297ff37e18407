"""Allow one driver per sweep or study on this machine, by an operating-system lock that ends with its process.

`Owner` identifies the driver, also to other machines (see `parents`).
"""

import contextlib
import functools
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fmnist_transfer.errors import BusyError, StoreError, write_problem
from fmnist_transfer.store.places import short_name, sqlite_path

if TYPE_CHECKING:
    import psutil

SAME_START_SECONDS = 2.0  # the system reports process starts in hundredths of a second, but the boot in seconds
MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PIDS = Path("/proc/self/ns/pid")  # a link to pid:[NUMBER], the PID namespace
MULTICAST = 1 << 40  # uuid.getnode() sets this bit if it found no network address and drew a random one


@dataclass(frozen=True)
class Owner:
    """A process, identified by its PID and, since PIDs are reused, its start time."""

    host: str
    machine: str
    """Id of the machine, since host names are not unique; empty if unknown."""
    pid: int
    boot: str
    """Boot id and PID namespace (each container has its own); empty if unknown."""
    started: float
    """Start in seconds after the boot, which does not change if the clock is set; 0 if unknown."""

    @classmethod
    @functools.cache
    def this_process(cls) -> Self:
        import psutil

        return cls(socket.gethostname(), _machine(), os.getpid(), _boot(), _started(psutil.Process()))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        return cls(
            tags.get("host", "unknown"),
            tags.get("machine", ""),
            int(tags.get("pid", 0)),
            tags.get("boot", ""),
            float(tags.get("process_started", 0)),
        )

    def to_tags(self) -> dict[str, str]:
        started = str(self.started)
        return {
            "host": self.host,
            "machine": self.machine,
            "pid": str(self.pid),
            "boot": self.boot,
            "process_started": started,
        }

    def is_of_this_machine(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended; always False for another machine."""
        import psutil

        if not self.is_of_this_machine():
            return False
        if self.boot != _boot():
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


@functools.cache
def _machine() -> str:
    """Hash of machine id or network address, and of the host name, which differs by container; empty if unknown."""
    with contextlib.suppress(OSError):
        return _digest(MACHINE_ID.read_text().strip())
    address = uuid.getnode()
    return "" if address & MULTICAST else _digest(str(address))


def _digest(text: str) -> str:
    return hashlib.sha256(f"{text} {socket.gethostname()}".encode()).hexdigest()[:16]


def _boot() -> str:
    if not BOOT_ID.exists():
        return ""
    return f"{BOOT_ID.read_text().strip()} {PIDS.readlink().name}"


def _started(process: "psutil.Process") -> float:
    import psutil

    return round(process.create_time() - psutil.boot_time(), 2)


@contextlib.contextmanager
def locked(uri: str, noun: str, key: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold this machine's lock for `key` in the store at `uri` until the block ends or this process dies.

    Raises BusyError, which names the other process, if that still holds the lock after `wait_seconds`.

    Args:
        noun: names in the message what is locked.
    """
    import filelock

    folder = locks_folder(uri)
    owner = folder / f"{key}.owner"
    lock = filelock.FileLock(folder / f"{key}.lock", timeout=wait_seconds)
    try:
        lock.acquire()
        owner.write_text(json.dumps({"since": time.strftime("%F %T")} | asdict(Owner.this_process())))
    except filelock.Timeout:
        raise busy(noun, _read(owner)) from None
    except OSError as error:  # another user's lock, or a full disk
        lock.release()
        raise StoreError(write_problem(owner, error)) from error
    try:
        yield
    finally:
        lock.release()


def busy(noun: str, driver: str) -> BusyError:
    """The error for a second driver; `driver` names the first."""
    return BusyError(
        f"this {noun} is being run by another process ({driver}). Wait for it or stop it; finished work is kept"
    )


def _read(file: Path) -> str:
    """Describe the process that holds the lock."""
    try:
        fields = json.loads(file.read_text())
        since = fields.pop("since")
        return f"{Owner(**fields)}, since {since}"
    except (OSError, ValueError, TypeError, KeyError):  # not yet written, or written by another version
        return "its owner is not recorded yet"


def locks_folder(uri: str) -> Path:
    """The folder of locks: beside a sqlite file; for a server among the user's files, else the temporary ones.

    Raises StoreError if it cannot be written.
    """
    if (database := sqlite_path(uri)) is not None:
        folder = database.parent / "locks"
        if not _is_writable(folder):
            raise StoreError(
                f"cannot write {folder}, where locks are kept; give this user access, or use another store"
            )
        return folder
    for place in (_state_folder, _temporary_folder):
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
            folder = place() / "locks" / short_name(uri)
            if _is_writable(folder):
                return folder
    raise StoreError("no folder for locks can be written; set XDG_STATE_HOME to one")


def _state_folder() -> Path:
    import platformdirs

    return platformdirs.user_state_path("fmnist-transfer")


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"fmnist-transfer-{os.getuid()}"


def _is_writable(folder: Path) -> bool:
    """Create the folder if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)
