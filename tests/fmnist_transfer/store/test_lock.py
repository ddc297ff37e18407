"""One driver: locks of this machine, and what a parent run says of another."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner, check_owner, locked
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Run, Store

HERE = Owner.this_process()
ELSEWHERE = replace(HERE, machine="another machine", pid=1)  # of the same name


def test_an_owner_survives_tags() -> None:
    assert Owner.from_tags(HERE.to_tags()) == HERE
    assert (HERE.host, HERE.pid) == (socket.gethostname(), os.getpid())
    assert len(HERE.machine) == 16
    assert HERE.is_of_this_machine()
    assert not HERE.is_dead()
    assert not ELSEWHERE.is_of_this_machine()
    assert not Owner.from_tags({}).is_of_this_machine()  # of an earlier version, which named no machine


def test_only_a_process_of_this_machine_is_ever_certainly_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time() - psutil.boot_time()
    owner = replace(HERE, pid=process.pid, started=started)
    assert not owner.is_dead()
    assert not replace(owner, started=0.0).is_dead()  # not known
    assert replace(owner, started=started - 3_600).is_dead()  # another process had this pid
    assert replace(owner, boot="before the reboot").is_dead()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert owner.is_dead()
    process.communicate()
    assert owner.is_dead()
    assert not replace(owner, machine="another machine").is_dead()
    assert not replace(owner, machine="").is_dead()


def test_a_second_driver_is_refused_and_told_about_the_first(store: Store) -> None:
    first, another, second = (locked(store.uri, "sweep", key) for key in "aba")
    with first, another, pytest.raises(BusyError, match=f"pid {os.getpid()}"), second:
        pass
    with locked(store.uri, "sweep", "a"):
        pass


@pytest.fixture
def parent(store: Store) -> Run:
    """A RUNNING run of another machine."""
    run_id = store.start(TRANSFER, "a sweep")
    store.log(run_id, tags=ELSEWHERE.to_tags())
    return store.client.get_run(run_id)


def test_another_machine_is_refused_while_the_parent_is_running(store: Store, parent: Run) -> None:
    with pytest.raises(BusyError, match="--take-over") as refused:
        check_owner(True, parent, "sweep", take_over=False)
    assert refused.value.exit_status == 5
    check_owner(True, parent, "sweep", take_over=True)
    check_owner(False, parent, "sweep", take_over=False)  # a store of this machine alone, whose lock says enough
    store.end(parent.info.run_id)
    check_owner(True, store.client.get_run(parent.info.run_id), "sweep", take_over=False)


def test_a_process_of_this_machine_holds_its_run_while_it_lives(store: Store, parent: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time() - psutil.boot_time()
        store.log(parent.info.run_id, tags=replace(HERE, pid=process.pid, started=started).to_tags())
        run = store.client.get_run(parent.info.run_id)
        for take_over in (False, True):
            with pytest.raises(BusyError):
                check_owner(True, run, "sweep", take_over=take_over)
    check_owner(True, run, "sweep", take_over=False)
