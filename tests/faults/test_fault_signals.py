"""Rows 1 to 3 of the fault matrix: a command is interrupted, terminated, killed, and run again."""

import os
import re
import signal
import time

import pytest
from proving import MakeSite, Site, is_alive

from fmnist_transfer.store.roles import TRANSFER, TUNING

SLOW_SWEEP = ["--fractions", "20", "100", "--replicates", "2", "--epochs", "50"]  # 8 cells
STATUS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_a_signal_ends_a_sweep_in_good_order_and_only_open_cells_are_redone(
    site: Site, number: int, status: int
) -> None:
    """Rows 1 and 2; the workers get the signal, too, as from a terminal."""
    process = site.start_sweep(*SLOW_SWEEP, "--workers", "2")
    process.wait_for(lambda: site.n_cells("FINISHED") >= 1)
    workers = process.workers()
    process.signal_group(number)
    done = process.done()
    assert done.status == status, done.err
    n_done = len(site.cells(status="FINISHED"))
    assert f"error: {n_done} of 8 cells done; run the same command to go on" in done.err
    assert "Traceback" not in done.err
    assert {run.info.status for run in site.cells()} <= {"FINISHED", "KILLED"}
    assert site.open().find(TRANSFER, role="sweep")[0].info.status == "KILLED"
    assert not any(is_alive(pid) for pid in workers)
    finished = {run.info.run_id for run in site.cells(status="FINISHED")}
    again = site.sweep(*SLOW_SWEEP, "--workers", "2")
    assert again.status == 0, again.err
    assert re.search(rf"\b{n_done} cells? (is|are) there already, {8 - n_done} to go", again.out)
    assert len(site.digests()) == 8
    assert finished <= {run.info.run_id for run in site.cells(status="FINISHED")}


def test_a_second_signal_leaves_at_once(site: Site) -> None:
    process = site.start_sweep("--fractions", "100", "--replicates", "1", "--epochs", "100000")
    process.wait_for(lambda: site.n_cells("RUNNING") == 1)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there before it can end in good order
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    done = process.done(30)
    assert done.status in (130, 143)
    assert "of 2 cells done" not in done.err
    assert site.n_cells("RUNNING") == 1  # no time to say anything to the store


def test_a_signal_ends_a_search_in_good_order_and_resumed_it_equals_an_undisturbed_one(make_site: MakeSite) -> None:
    arguments = ["--trials", "8", "--epochs", "3"]
    site, undisturbed = make_site(bare=True), make_site("undisturbed", bare=True)
    process = site.start_search(*arguments)
    process.wait_for(lambda: site.n_running_trials() and site.count(site.study_database, N_COMPLETE) >= 2)
    process.signal_group(signal.SIGINT)
    done = process.done()
    assert done.status == 130, done.err
    assert re.search(r"error: \d of 8 trials done; run the same command to go on", done.err)
    assert site.open().find(TUNING, role="study")[0].info.status == "KILLED"
    assert site.search(*arguments).status == 0
    assert undisturbed.search(*arguments).status == 0
    assert [(t.params, t.value) for t in site.trials()] == [(t.params, t.value) for t in undisturbed.trials()]


def test_a_signal_while_training_the_best_again_loses_no_finished_one(make_site: MakeSite) -> None:
    site = make_site(bare=True)
    arguments = ["--trials", "1", "--epochs", "12", "--retrain-seeds", "3"]
    process = site.start_search(*arguments)
    process.wait_for(lambda: site.database.exists() and len(retrained(site, "FINISHED")) >= 1)
    process.signal_group(signal.SIGINT)
    done = process.done()
    assert done.status == 130
    n_done = len(retrained(site, "FINISHED"))
    assert f"stopped in training the best again: {n_done} of 3 done; run the same command to go on" in done.err
    again = site.search(*arguments)
    assert again.status == 0, again.err
    assert f"{n_done} of 3 re-trainings are there already" in again.out
    assert len(retrained(site, "FINISHED")) == 3
    assert retrained(site, "RUNNING") == []


def retrained(site: Site, status: str) -> list[object]:
    return site.open().find(TUNING, status=status, role="retrained")


def test_kill_9_amid_an_epoch_is_taken_over_at_once(site: Site) -> None:
    """Row 3: the run is left RUNNING; the next command ends it as KILLED and makes another attempt."""
    arguments = ["--fractions", "100", "--inits", "random", "--replicates", "1", "--epochs", "60"]
    process = site.start_sweep(*arguments)
    process.wait_for(lambda: site.n_claims() == 1)
    process.kill()
    assert [run.info.status for run in site.cells()] == ["RUNNING"]
    done = site.sweep(*arguments)
    assert done.status == 0, done.err
    killed, finished = sorted(site.cells(), key=lambda run: run.data.tags["attempt"])
    assert (killed.info.status, killed.data.tags["reason"]) == ("KILLED", "its process died")
    assert (finished.info.status, finished.data.tags["attempt"]) == ("FINISHED", "2")


def test_workers_do_not_outlive_a_driver_that_is_killed(site: Site) -> None:
    process = site.start_sweep("--fractions", "100", "--replicates", "2", "--epochs", "100000", "--workers", "2")
    process.wait_for(lambda: site.n_cells("RUNNING") == 2)
    workers = process.workers()
    assert len(workers) == 2
    process.kill(group=False)
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_cell_whose_worker_is_killed_is_trained_again(site: Site) -> None:
    """Row 17, as the kernel does it when memory runs out."""
    process = site.start_sweep("--fractions", "100", "--replicates", "2", "--epochs", "150", "--workers", "2")
    process.wait_for(lambda: site.n_cells("RUNNING") == 2)
    os.kill(process.workers()[0], signal.SIGKILL)
    done = process.done()
    assert done.status == 0, done.err
    lost = re.search(
        r"(\w+ 100% r\d): the worker process died \(signal 9, perhaps for want of memory\); once more", done.out
    )
    assert lost, done.out
    (killed,) = site.cells(status="KILLED")
    assert killed.info.run_name == lost[1]
    assert len(site.digests()) == 4


def test_a_trial_whose_worker_is_killed_is_run_again(make_site: MakeSite) -> None:
    site = make_site(bare=True)
    process = site.start_search("--trials", "4", "--epochs", "20", "--workers", "2")
    process.wait_for(lambda: site.n_running_trials() == 2)
    os.kill(process.workers()[0], signal.SIGKILL)
    done = process.done()
    assert done.status == 0, done.err
    assert "a trial was lost: the worker process died (signal 9" in done.out
    assert len(site.trials()) == 4
    assert len(site.trial_runs()) == 4


N_COMPLETE = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
