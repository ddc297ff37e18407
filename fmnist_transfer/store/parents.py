"""Start or reopen the parent run of a sweep or a search, for one driver at a time.

The lock `locked` refuses a second driver on this machine. While the parent is RUNNING, its driver's tags refuse drivers
on other machines. Limit: two machines that reopen the same stopped parent in the same second both succeed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner, busy
from fmnist_transfer.store.runs import Run, Store

GIVE_WAY_SECONDS = 10.0  # within this time a later starter has seen this run and withdrawn


def open_parent(
    store: Store,
    noun: str,
    *,
    find: Callable[[], Sequence[Run]],
    start: Callable[[], str],
    params: Mapping[str, Any],
    take_over: bool,
) -> Run:
    """Make the parent RUNNING with this process as its driver, and return it. The caller holds this machine's lock.

    Raises BusyError if a driver on another machine has it or starts it at the same moment.

    Args:
        noun: names the work in messages.
        find: returns the active parents of this work; the earliest counts.
        start: starts a parent, which `find` then returns, and returns its id.
        params: logged if an interrupted driver has not logged them.
        take_over: the other machine's driver is known to be gone.
    """
    if present := _earliest_first(find()):
        check_owner(store.is_shared, present[0], noun, take_over=take_over)
        store.reopen(present[0], params)
        return present[0]
    run_id = start()
    deadline = time.monotonic() + GIVE_WAY_SECONDS
    # Each driver looks after it has started its own parent, so at most one driver sees its parent alone.
    while len(present := _earliest_first(find())) > 1:
        if present[0].info.run_id != run_id or time.monotonic() > deadline:
            store.client.delete_run(run_id)
            other = next(run.info.run_id for run in present if run.info.run_id != run_id)
            raise BusyError(f"another machine started this {noun} at the same moment: run {other}")
        time.sleep(0.5)
    return store.client.get_run(run_id)


def _earliest_first(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def check_owner(is_shared: bool, run: Run, noun: str, *, take_over: bool) -> None:
    """Raise BusyError if another driver may be working on the parent run. The caller holds this machine's lock.

    If only this machine uses the store, the lock suffices: a RUNNING run belongs to a dead driver.

    Args:
        take_over: the other machine is known to be gone.
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
