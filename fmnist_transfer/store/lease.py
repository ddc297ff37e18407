"""Who works on a sweep or a search, where several machines may: signs of life, and ownership that passes on.

    lease = Lease(store, run_id)          # of the parent run, which all machines share
    with lease.alive():                   # a sign of life every few seconds
        if lease.take("sweep"): ...       # else another's process owns it

A process of this machine is dead if the system says so. One of another machine is dead if its sign of life has not
changed for a lease, by the clock of whoever watches, which stands still while that sleeps; no two clocks are compared.
Owners are params, which are write-once: the n-th owner is whoever wrote `owner.N` first.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from fmnist_transfer.errors import BusyError, TakenOver
from fmnist_transfer.store.lock import Owner, busy
from fmnist_transfer.terminal.output import duration, say

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store


T = TypeVar("T")

BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
LOOK_SECONDS = 2.0
OWNER_PARAM, SIGN_TAG = "owner.", "sign."  # of the parent: owner.N = a process; sign.NAME = a count


class Lease:
    """One process's part in what the run `run_id` stands for. On a sqlite file, one machine's, no signs are given."""

    def __init__(self, store: "Store", run_id: str):
        self._store, self._run_id = store, run_id
        self._is_shared = store.is_shared
        self._seen: dict[str, tuple[str, float]] = {}  # name -> its last sign, and when it was first seen
        self._signed: set[str] = set()  # who gave a new one while this process watched

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life until the block ends."""
        if not self._is_shared:
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            n = 0
            while not ended.wait(BEAT_SECONDS if n else 0):
                n += 1
                with contextlib.suppress(Exception):  # the store is away: then nobody can take over, either
                    self._store.once.set_tag(self._run_id, SIGN_TAG + Owner.this_process().name, str(n))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def owned(self, what: str, should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Own it, with signs of life, until the block ends. Raises BusyError if another process lives that does."""
        with self.alive():
            if owner := self.take(what, should_stop):
                raise busy(what, owner)
            yield

    def take(self, what: str, should_stop: Callable[[], bool] = lambda: False) -> Owner | None:
        """Become the owner, unless another lives: None, or that one.

        Watches a silent owner of another machine for as long as a lease. A sqlite file has its lock instead.
        """
        if not self._is_shared:
            return None
        is_said = False
        while True:
            run = self._store.client.get_run(self._run_id)
            n, owner = self.owner_of(run.data.params)
            if owner == Owner.this_process():
                return None
            if owner is not None and run.info.status == "RUNNING" and not self.is_dead(owner, run.data.tags):
                if owner.is_here() or owner.name in self._signed or should_stop():
                    return owner
                if not is_said:
                    say(f"This {what} belongs to {owner}; waiting up to {duration(LEASE_SECONDS)} for a sign of life")
                    is_said = True
                time.sleep(min(LOOK_SECONDS, LEASE_SECONDS / 5))
                continue
            if run.info.status != "RUNNING":  # or a rival would still take it for nobody's after the next line
                self._store.client.update_run(self._run_id, status="RUNNING")
            text = json.dumps(asdict(Owner.this_process()))
            winner = self._store.log_once(self._run_id, f"{OWNER_PARAM}{n + 1}", text)
            if winner == text:
                return None

    def is_owner(self) -> bool:
        """Whether this process still is."""
        if not self._is_shared:
            return True
        _, owner = self.owner_of(self._store.client.get_run(self._run_id).data.params)
        return owner == Owner.this_process()

    def check_owner(self, what: str, parts: str) -> None:
        """Raise TakenOver unless this process still is."""
        if not self.is_owner():
            raise TakenOver(
                f"Another process has taken over {what} while this one was away, and finishes it; the {parts} that "
                "this one finished count"
            )

    @staticmethod
    def owner_of(params: Mapping[str, str]) -> tuple[int, Owner | None]:
        """How many owners there were, and the last one."""
        numbers = [int(key.removeprefix(OWNER_PARAM)) for key in params if key.startswith(OWNER_PARAM)]
        if not numbers:
            return 0, None
        return max(numbers), Owner(**json.loads(params[f"{OWNER_PARAM}{max(numbers)}"]))

    def is_dead(self, owner: Owner, signs: Mapping[str, str]) -> bool:
        """Whether the process has ended: certainly, or for all that this one has seen for a lease.

        Args:
            signs: the tags of the parent run, just read.
        """
        if not self._is_shared:
            return not owner.is_of_this_host() or owner.is_dead()
        if owner.is_here():
            return owner.is_dead()
        sign, now = signs.get(SIGN_TAG + owner.name, ""), time.monotonic()
        last, since = self._seen.get(owner.name, (None, now))
        if sign != last:
            self._seen[owner.name] = (sign, now)
            if last is not None:
                self._signed.add(owner.name)
            return False
        return now - since > LEASE_SECONDS


def own_or_help(
    own: Callable[[], T], help_owner: Callable[[], None] | None, leave: Callable[[], T], is_finished: Callable[[], bool]
) -> T:
    """Own something and finish it, or help whoever owns it, and finish it if that one has died meanwhile.

    Args:
        own: does all of it; raises BusyError if another process owns it, TakenOver if one has taken it.
        help_owner: does what the owner need not do itself; None raises the BusyError.
        leave: the result of a process that leaves the rest to another.
        is_finished: whether the owner has finished it.
    """
    has_helped = False
    while True:
        try:
            return own()
        except BusyError as error:
            if help_owner is None:
                raise
            if has_helped:
                say(f"Nothing is left to help with: {str(error).partition(';')[0]} and finishes it")
                return leave()
        except TakenOver as error:
            say(str(error))
            return leave()
        help_owner()
        has_helped = True
        if is_finished():
            return leave()
