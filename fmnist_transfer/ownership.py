"""One driver for each sweep and each study: a lock of the operating system, which cannot outlive its owner."""

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fmnist_transfer.database import sqlite_path
from fmnist_transfer.errors import BusyError


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
        who = owner.read_text() if owner.exists() else "unknown"
        raise BusyError(f"another process works on this {what} ({who}); wait for it, or stop it first") from None
    try:
        owner.write_text(f"host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%F %T')}")
        yield
    finally:
        lock.release()


def _locks_folder(uri: str) -> Path:
    """Beside a sqlite file; for a server, among the user's files."""
    if (database := sqlite_path(uri)) is not None:
        return database.parent / "locks"
    import platformdirs

    return platformdirs.user_state_path("fmnist-transfer") / "locks" / hashlib.sha256(uri.encode()).hexdigest()[:16]
