"""Who owns what, when that process is certainly dead, and that there is one driver."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner, locked
from fmnist_transfer.store.runs import Store

HERE = socket.gethostname()


def test_an_owner_survives_tags() -> None:
    owner = Owner.this_process()
    assert Owner.from_tags(owner.to_tags()) == owner
    assert (owner.host, owner.pid) == (HERE, os.getpid())
    assert str(owner) == f"host {HERE}, pid {os.getpid()}"


def test_only_a_process_of_this_host_is_ever_certainly_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    boot, started = Owner.this_process().boot, psutil.Process(process.pid).create_time() - psutil.boot_time()
    assert not Owner(HERE, process.pid, boot, started).is_dead()
    assert not Owner(HERE, process.pid, "", 0.0).is_dead()  # of before it was written down
    assert Owner(HERE, process.pid, boot, started - 3_600).is_dead()  # another had this pid
    assert Owner(HERE, process.pid, "before the reboot", started).is_dead()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert Owner(HERE, process.pid, boot, started).is_dead()
    process.communicate()
    assert Owner(HERE, process.pid, boot, started).is_dead()
    assert not Owner("elsewhere", process.pid, boot, started).is_dead()


def test_a_second_owner_is_refused_and_told_who_the_first_is(store: Store) -> None:
    first, other, second = (locked(store.uri, "sweep", key) for key in "aba")
    with first, other, pytest.raises(BusyError, match=f"pid {os.getpid()}"), second:
        pass
    with locked(store.uri, "sweep", "a"):
        pass
