"""Allow one driver per sweep or study: by `locked` on this machine, by its parent run where machines share a store.

The lock ends with its process. Limit: two machines that reopen a stopped parent in the same second both succeed.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmnist_transfer.errors import BusyError, StoreError, write_problem
from fmnist_transfer.store.places import short_name, sqlite_path
from fmnist_transfer.store.provenance import Owner
from fmnist_transfer.store.runs import Run, Store

GIVE_WAY_SECONDS = 10.0  # within this time a later starter has seen this run and withdrawn


@contextlib.contextmanager
def locked(uri: str, noun: str, key: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold this machine's lock for `key` in the store at `uri` until the block ends or this process dies.

    Raises BusyError, which names the `noun` and the other process, if that keeps the lock for `wait_seconds`.
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
        return f"host {fields['host']}, pid {fields['pid']}, since {fields['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # not yet written, or written by another version
        return "its owner is not recorded yet"


def locks_folder(uri: str) -> Path:
    """The folder of locks, made if missing: beside a sqlite file; for a server in the user's state or temporary files.

    Raises StoreError if it cannot be written.
    """
    import platformdirs

    if (database := sqlite_path(uri)) is not None:
        places = [database.parent / "locks"]
        remedy = f"cannot write {places[0]}, where locks are kept; give this user access, or use another store"
    else:
        places = [Path(tempfile.gettempdir(), f"fmnist-transfer-{os.getuid()}", "locks", short_name(uri))]
        with contextlib.suppress(RuntimeError):  # this user has no home
            places.insert(0, platformdirs.user_state_path("fmnist-transfer") / "locks" / short_name(uri))
        remedy = "no folder for locks can be written; set XDG_STATE_HOME to one"
    for folder in places:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    raise StoreError(remedy)


def open_parent(
    store: Store,
    noun: str,
    *,
    find: Callable[[], Sequence[Run]],
    start: Callable[[], str],
    params: Mapping[str, Any],
    take_over: bool,
) -> Run:
    """Make the parent run RUNNING with this process as its driver, and return it. The caller holds `locked`.

    Raises BusyError if a driver on another machine has it or starts it at the same moment.

    Args:
        find: returns the active parents of this work; the earliest counts.
        start: starts a parent, which `find` then returns, and returns its id.
        params: logged if an interrupted driver has not logged them.
        take_over: the other machine's driver is known to be gone.
    """
    if parents := _earliest_first(find()):
        check_owner(store.is_shared, parents[0], noun, take_over=take_over)
        store.reopen(parents[0], params)
        return parents[0]
    run_id = start()
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    # Each driver looks after it has started its own parent, so at most one driver sees its parent alone.
    while len(parents := _earliest_first(find())) > 1:
        if parents[0].info.run_id != run_id or time.monotonic() > deadline:
            store.client.delete_run(run_id)
            theirs = next(run.info.run_id for run in parents if run.info.run_id != run_id)
            raise BusyError(f"another machine started this {noun} at the same moment: run {theirs}")
        time.sleep(0.5)
    return store.client.get_run(run_id)


def _earliest_first(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def check_owner(is_shared: bool, run: Run, noun: str, *, take_over: bool) -> None:
    """Raise BusyError if another driver may be working on the parent run. The caller holds `locked`.

    If only this machine uses the store, that suffices: a RUNNING run belongs to a dead driver.
    """
    owner = Owner.from_tags(run.data.tags)
    if not is_shared or run.info.status != "RUNNING" or owner == Owner.this_process() or owner.is_dead():
        return
    if owner.is_of_this_machine():
        raise busy(noun, str(owner))
    if not take_over:
        raise BusyError(
            f"this {noun} is being run on another machine ({owner}). Wait for it or stop it; finished work is kept. If "
            "that machine is gone for good, add --take-over"
        )
