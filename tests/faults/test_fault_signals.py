"""Rows 1 to 3 and 16: a command is interrupted, terminated, killed, or loses a worker; and is run again."""

import os
import signal
import time

import pytest
from proving import MakeSite, Server, Site, is_alive

from fmnist_transfer.store.roles import TRANSFER, TUNING

SLOW_SWEEP = ["--fractions", "20", "100", "--replicates", "2", "--epochs", "50"]  # 8 cells
ONE_CELL = ["--fractions", "100", "--inits", "random", "--replicates", "1", "--epochs", "60"]
N_COMPLETE = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)], ids=lambda value: value
)
def test_a_signal_ends_a_sweep_in_good_order(site: Site, number: int, status: int) -> None:
    """Rows 1 and 2; the workers get the signal, too, as from a terminal. Only what is open is trained again."""
    process = site.start_sweep(*SLOW_SWEEP, "--workers", "2", finished=1)
    workers = process.workers()
    process.signal_group(number)
    done = process.done(status)
    finished = {run.info.run_id for run in site.cells(status="FINISHED")}
    for part in (f"{len(finished)} of 8", "python -m sweeps.transfer"):
        assert part in done.err
    assert "Traceback" not in done.err
    assert set(site.cell_states()) <= {"FINISHED", "KILLED"}
    assert [run.info.status for run in site.open().find(TRANSFER, role="sweep")] == ["KILLED"]
    assert not any(is_alive(pid) for pid in workers)
    site.sweep(*SLOW_SWEEP, "--workers", "2")
    assert len(site.digests()) == 8
    assert finished <= {run.info.run_id for run in site.cells(status="FINISHED")}


def test_a_second_signal_leaves_at_once(site: Site) -> None:
    """Row 1."""
    process = site.start_sweep("--fractions", "100", "--replicates", "1", "--epochs", "100000", running=1)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there before it can end in good order
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    done = process.done(130, 143, seconds=30)
    assert "python -m sweeps.transfer" not in done.err
    assert site.n_cells("RUNNING") == 1  # no time to say anything to the store


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda value: value)
def test_a_search_after_a_signal_equals_an_undisturbed_one(make_site: MakeSite, number: int, status: int) -> None:
    """Rows 1 and 2."""
    arguments = ["--trials", "8", "--epochs", "3"]
    site, undisturbed = make_site(bare=True), make_site("undisturbed", bare=True)
    process = site.start_search(*arguments)
    process.wait_for(lambda: site.n_running_trials() and site.count(N_COMPLETE, study=True) >= 2)
    process.signal_group(number)
    process.done(status).names(f"{len(site.trials())} of 8")
    assert site.n_running_trials() == 0
    assert [run.info.status for run in site.open().find(TUNING, role="study")] == ["KILLED"]
    site.search(*arguments)
    undisturbed.search(*arguments)
    assert [(t.params, t.value) for t in site.trials()] == [(t.params, t.value) for t in undisturbed.trials()]


def test_a_signal_while_training_the_best_again_loses_no_finished_one(make_site: MakeSite) -> None:
    """Row 1."""
    site = make_site(bare=True)
    arguments = ["--trials", "1", "--epochs", "12", "--retrain-seeds", "3"]
    process = site.start_search(*arguments)
    process.wait_for(lambda: site.database.exists() and len(site.retrained("FINISHED")) >= 1)
    process.signal_group(signal.SIGINT)
    done = process.done(130)
    finished = {run.info.run_id for run in site.retrained("FINISHED")}
    assert f"{len(finished)} of 3" in done.err
    site.search(*arguments)
    assert len(site.retrained("FINISHED")) == 3
    assert finished <= {run.info.run_id for run in site.retrained("FINISHED")}
    assert site.retrained("RUNNING") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda value: value)
def test_a_signal_ends_a_report(site: Site, number: int, status: int) -> None:
    """Rows 1 and 2; the same command makes the whole report."""
    site.sweep("--fractions", "20", "100", "--replicates", "1", "--epochs", "1")
    (parent,) = site.open().find(TRANSFER, role="sweep")
    report = site.folder / "artifacts" / TRANSFER / parent.info.run_id / "artifacts" / "report"
    names = {file.name for file in report.iterdir()}
    for file in report.iterdir():
        file.unlink()
    process = site.start_report()
    process.wait_for(lambda: any(report.iterdir()))
    process.signal_group(number)
    process.done(status).names("python -m sweeps.report")
    assert "report.html" not in {file.name for file in report.iterdir()}
    site.start_report().done()
    assert {file.name for file in report.iterdir()} == names


@pytest.mark.parametrize("is_shared", [False, True], ids=["file", "server"])
def test_kill_9_amid_an_epoch(site: Site, server: Server, is_shared: bool) -> None:
    """Row 3: the run is left RUNNING; the next command ends it KILLED and trains the cell again."""
    uri = server.uri if is_shared else None
    process = site.start_sweep(*ONE_CELL, uri=uri, running=1)
    process.kill()
    (killed,) = site.cells()
    assert killed.info.status == "RUNNING"
    site.sweep(*ONE_CELL, uri=uri)
    assert {run.info.run_id: run.info.status for run in site.cells()}.pop(killed.info.run_id) == "KILLED"
    (finished,) = site.cells(status="FINISHED")
    assert finished.data.tags["cell_key"] == killed.data.tags["cell_key"]
    assert [run.info.status for run in site.open().find(TRANSFER, role="sweep")] == ["FINISHED"]


def test_the_runs_of_another_boot_are_those_of_the_dead(site: Site, server: Server) -> None:
    """Row 3, after a power cut: a process of that pid may be another one."""
    process = site.start_sweep(*ONE_CELL, uri=server.uri, running=1)
    process.kill()
    store = site.open()
    running = store.find(TRANSFER, status="RUNNING")
    assert len(running) == 2
    for run in running:
        store.log(run.info.run_id, tags={"boot": "an earlier one", "pid": os.getpid()})
    site.sweep(*ONE_CELL, uri=server.uri)
    assert sorted(site.cell_states()) == ["FINISHED", "KILLED"]


def test_workers_do_not_outlive_a_driver_that_is_killed(site: Site) -> None:
    """Row 3."""
    process = site.start_sweep(
        "--fractions", "100", "--replicates", "2", "--epochs", "100000", "--workers", "2", running=2
    )
    workers = process.workers()
    assert len(workers) == 2
    process.kill(group=False)
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("work", ["cells", "trials"])
def test_what_a_worker_leaves_is_done_by_another(make_site: MakeSite, work: str) -> None:
    """Row 16, as the kernel does it when memory runs out. A cell stays the same run."""
    site = make_site()
    if work == "cells":
        arguments = ["--fractions", "100", "--replicates", "2", "--epochs", "150", "--workers", "2"]
        process = site.start_sweep(*arguments, running=2)
    else:
        process = site.start_search("--trials", "4", "--epochs", "20", "--workers", "2", running=2)
    os.kill(process.workers()[0], signal.SIGKILL)
    assert process.done().out.count("signal 9") == 1
    if work == "cells":
        assert site.cell_states() == ["FINISHED"] * 4
        assert len(site.digests()) == 4
    else:
        assert list(site.trial_states()) == [0, 1, 2, 3]
        assert len(site.trial_runs()) == 4


def test_what_kills_its_worker_twice_fails_alone(site: Site) -> None:
    """Row 16, for a cell and a trial; the same command tries it again."""
    sweep = ["--fractions", "20", "100", "--inits", "random", "--replicates", "1", "--epochs", "1", "--workers", "2"]
    site.sweep(*sweep, fault="cell-dies:20", status=1)
    assert {run.data.tags["percent"]: run.info.status for run in site.cells()} == {"020": "FAILED", "100": "FINISHED"}
    site.sweep(*sweep)
    assert sorted(site.cell_states()) == ["FAILED", "FINISHED", "FINISHED"]
    search = ["--trials", "3", "--epochs", "1", "--workers", "2"]
    site.search(*search, fault="trial-dies:0", status=1)
    assert site.trial_states() == {0: "FAIL", 1: "COMPLETE", 2: "COMPLETE"}
    assert len(site.trial_runs()) == 3
    site.search(*search)
    assert site.trial_states() == dict.fromkeys([1, 2, 3], "COMPLETE")
