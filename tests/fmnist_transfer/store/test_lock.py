"""One driver on this machine, and who it is."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner, locked, locks_folder
from fmnist_transfer.store.runs import Store

HERE = Owner.this_process()
ELSEWHERE = replace(HERE, machine="another machine", pid=1)  # of the same name


def test_an_owner_survives_tags() -> None:
    assert Owner.from_tags(HERE.to_tags()) == HERE
    assert (HERE.host, HERE.pid) == (socket.gethostname(), os.getpid())
    assert len(HERE.machine) == 16
    assert HERE.is_of_this_machine()
    assert not HERE.is_dead()
    assert not ELSEWHERE.is_of_this_machine()
    assert not Owner.from_tags({}).is_of_this_machine()  # of another program's run


def test_only_a_process_of_this_machine_is_ever_certainly_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time() - psutil.boot_time()
    owner = replace(HERE, pid=process.pid, process_started=started)
    assert not owner.is_dead()
    assert replace(owner, process_started=started - 3_600).is_dead()  # another process had this pid
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


def test_a_store_has_one_folder_of_locks_however_its_user_is_written() -> None:
    assert locks_folder("http://me:secret@host") == locks_folder("http://host/") != locks_folder("http://host2")
