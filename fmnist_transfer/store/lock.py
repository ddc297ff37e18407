"""One driver per sweep and per study on this machine: a lock of the operating system, which ends with its process.

`Owner` identifies the driver, also to other machines (`parents`).
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

SAME_START_SECONDS = 2.0  # the system gives starts in hundredths, and the boot in seconds
MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PIDS = Path("/proc/self/ns/pid")  # a link to pid:[NUMBER]
MULTICAST = 1 << 40  # set by uuid.getnode() when it found no network address and drew one


@dataclass(frozen=True)
class Owner:
    """A process. Its pid may be another's by now, so its start, counted from the boot, identifies it, too."""

    host: str
    machine: str
    """Id of the machine; two may share a name. Empty where it is not known."""
    pid: int
    boot: str
    """Name of the machine's boot, and of the space of its pids (a container has its own); empty where unknown."""
    started: float
    """Seconds after the boot, which a clock that is set leaves alone; 0 where it is not known."""

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
        """Whether it is certain that the process has ended; on another machine it never is."""
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
    """16 hexadecimal digits of the machine's id, its network address and its name; containers differ in the last."""
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
    """Hold the lock of `key` in the store at `uri` until the block ends or this process dies.

    It holds on one machine. Raises BusyError, which names the other process, if that has it for longer than
    `wait_seconds`.

    Args:
        noun: what is locked, for the message.
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
    """The error of a second driver, which names the first."""
    return BusyError(
        f"this {noun} is being run by another process ({driver}). Wait for it or stop it; finished work is kept"
    )


def _read(file: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        fields = json.loads(file.read_text())
        since = fields.pop("since")
        return f"{Owner(**fields)}, since {since}"
    except (OSError, ValueError, TypeError, KeyError):  # not yet written, or by another version
        return "it has not yet said which"


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
