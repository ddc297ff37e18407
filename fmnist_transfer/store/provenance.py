"""The process that made a run: `Owner` says which, also to other machines, and `provenance` from which code."""

import functools
import hashlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fmnist_transfer.store.places import PROJECT

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
    """Seconds after the boot, which do not change if the clock is set; 0 if unknown."""

    @classmethod
    @functools.cache
    def this_process(cls) -> Self:
        import psutil

        return cls(socket.gethostname(), _machine(), os.getpid(), _boot(), _started(psutil.Process()))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self:
        host, machine, boot = tags.get("host", "unknown"), tags.get("machine", ""), tags.get("boot", "")
        return cls(host, machine, int(tags.get("pid", 0)), boot, float(tags.get("process_started", 0)))

    def to_tags(self) -> dict[str, str]:
        values = asdict(self)
        values["process_started"] = values.pop("started")
        return {key: str(value) for key, value in values.items()}

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
    try:
        machine = MACHINE_ID.read_text().strip()
    except OSError:
        if (address := uuid.getnode()) & MULTICAST:
            return ""
        machine = str(address)
    return hashlib.sha256(f"{machine} {socket.gethostname()}".encode()).hexdigest()[:16]


def _boot() -> str:
    return f"{BOOT_ID.read_text().strip()} {PIDS.readlink().name}" if BOOT_ID.exists() else ""


def _started(process: "psutil.Process") -> float:
    import psutil

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
    """Commit and dirty flag of the checkout; empty if `checkout` is not the root of a repository.

    An installed package may lie inside another repository, whose commit would be misleading.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return {}
        is_dirty = bool(git("status", "--porcelain"))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git_dirty": str(is_dirty).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
