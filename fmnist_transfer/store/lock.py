"""The process that made a run, and locks: one driver per sweep or study on this machine."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import filelock
import psutil

from fmnist_transfer.errors import BusyError, StoreError, write_problem
from fmnist_transfer.store.places import PROJECT, sqlite_path, without_user

SAME_START_SECONDS = 2.0  # the system reports process starts in hundredths of a second, but the boot in seconds
MACHINE_ID, BOOT_ID = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")
PIDS = Path("/proc/self/ns/pid")  # a link to pid:[NUMBER], the PID namespace


@dataclass(frozen=True)
class Owner:
    """A process, identified by its PID and, since PIDs are reused, its start."""

    host: str
    machine: str  # an id, since host names are not unique
    pid: int
    boot: str  # boot id and PID namespace (each container has its own)
    process_started: float  # seconds after the boot, which do not change if the clock is set

    @classmethod
    @functools.cache
    def this_process(cls) -> Self:
        return cls(socket.gethostname(), _machine(), os.getpid(), _boot(), _started(psutil.Process()))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        host, machine, boot = tags.get("host", "unknown"), tags.get("machine", ""), tags.get("boot", "")
        return cls(host, machine, int(tags.get("pid", 0)), boot, float(tags.get("process_started", 0)))

    def to_tags(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}

    def is_of_this_machine(self) -> bool:
        return self.machine == _machine()

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended; always False for another machine."""
        if not self.is_of_this_machine():
            return False
        if self.boot != _boot():
            return True
        try:
            process = psutil.Process(self.pid)
            is_another = abs(_started(process) - self.process_started) > SAME_START_SECONDS
            return is_another or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}"


@functools.cache
def _machine() -> str:
    """Hash of machine id or network address, and of the host name, which differs by container."""
    machine = MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else str(uuid.getnode())
    return hashlib.sha256(f"{machine} {socket.gethostname()}".encode()).hexdigest()[:16]


def _boot() -> str:
    return f"{BOOT_ID.read_text().strip()} {PIDS.readlink().name}" if BOOT_ID.exists() else ""


def _started(process: psutil.Process) -> float:
    return round(process.create_time() - psutil.boot_time(), 2)


@functools.cache
def provenance() -> dict[str, str]:
    """Tags of every run: package version, git commit, command, and the process that owns it."""
    try:
        package = importlib.metadata.version("fmnist-transfer")
    except importlib.metadata.PackageNotFoundError:
        package = "not installed"
    main = getattr(sys.modules["__main__"], "__spec__", None)
    command = main.name if main else Path(sys.argv[0]).name
    tags = {"package_version": package, "mlflow.source.type": "LOCAL", "mlflow.source.name": command}
    return tags | Owner.this_process().to_tags() | git_tags(PROJECT)


def git_tags(checkout: Path) -> dict[str, str]:
    """Commit and dirty flag; empty if `checkout` is not the root of a repository, as an installed package's folder."""
    if not (checkout / ".git").exists():
        return {}
    try:
        command = ["git", "-C", str(checkout), "status", "--porcelain=v2", "--branch"]
        commit, *lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    is_dirty = any(not line.startswith("#") for line in lines)
    return {"mlflow.source.git.commit": commit.removeprefix("# branch.oid "), "git_dirty": str(is_dirty).lower()}


@contextlib.contextmanager
def locked(uri: str, noun: str, key: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the store's lock `key` until the block ends or this process dies. Raises BusyError after `wait_seconds`."""
    folder = locks_folder(uri)
    owner = folder / f"{key}.owner"
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(filelock.FileLock(folder / f"{key}.lock", timeout=wait_seconds))
            owner.write_text(f"{Owner.this_process()}, since {time.strftime('%F %T')}")
        except filelock.Timeout:
            raise busy(noun, owner.read_text() if owner.exists() else "its owner is not recorded yet") from None
        except OSError as error:  # another user's lock, or a full disk
            raise StoreError(write_problem(owner, error)) from error
        yield


def busy(noun: str, driver: str) -> BusyError:
    text = f"this {noun} is being run by another process ({driver}). Wait for it or stop it; finished work is kept"
    return BusyError(text)


def locks_folder(uri: str) -> Path:
    """The folder of locks: beside a sqlite file, else per user and store in XDG_STATE_HOME or for temporary files."""
    if (database := sqlite_path(uri)) is not None:
        return database.parent / "locks"
    name = hashlib.sha256(without_user(uri).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_STATE_HOME") or tempfile.gettempdir(), f"fmnist-transfer-{os.getuid()}", name)
