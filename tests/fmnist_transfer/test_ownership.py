"""Who owns a run, and when that process is certainly dead."""

import os
import socket
import subprocess
import sys
import time

import psutil

from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.roles import TRANSFER, TUNING
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


def test_a_run_is_reopened_by_its_owner(store: Store) -> None:
    run_id = store.start(TRANSFER, "sweep", tags={"host": "elsewhere"})
    store.reopen(store.client.get_run(run_id), {"seed": 1})
    run = store.client.get_run(run_id)
    assert (run.data.tags["host"], run.data.params, run.info.status) == (HERE, {"seed": "1"}, "RUNNING")


def test_reaping_ends_runs_of_the_dead_alone(store: Store) -> None:
    dead = store.start(TUNING, "dead", tags=Owner(HERE, 2**22 + 1, "", 1.0).to_tags())
    others = [store.start(TUNING, "mine"), store.start(TUNING, "away", tags=Owner("elsewhere", 1, "", 1.0).to_tags())]
    assert store.reap(TUNING) == 1
    assert store.client.get_run(dead).info.status == "KILLED"
    assert [store.client.get_run(run_id).info.status for run_id in others] == ["RUNNING"] * 2


def test_a_param_is_won_once(store: Store) -> None:
    run_id = store.start(TRANSFER, "ledger")
    assert store.log_once(run_id, "cell.k.1", "first") == "first"
    assert store.log_once(run_id, "cell.k.1", "first") == "first"
    assert store.log_once(run_id, "cell.k.1", "second") == "first"
