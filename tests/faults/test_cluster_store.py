"""PostgreSQL and a tracking server that go away and come back, and a second machine at one sweep or search."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from postgres import PostgreSQL, SharedSite, check_no_password
from proving import ROOT, Site

from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER, TUNING

pytestmark = pytest.mark.cluster

CELLS_24 = ["--fractions", "20", "40", "60", "100", "--replicates", "3", "--curve-replicates", "3", "--epochs", "60"]
OPEN_BOTH = """
import sys
from pathlib import Path
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.retry import RetryPolicy
from tuning.study import open_storage
open_store(sys.argv[1]).client.search_experiments()
open_storage(sys.argv[2], Path(), RetryPolicy())
"""


def test_each_database_is_made_and_neither_is_taken_for_the_other(postgres: PostgreSQL) -> None:
    """Row 25 on PostgreSQL."""
    uris = [postgres.create("own-mlflow"), postgres.create("own-study")]
    command = [sys.executable, "-c", OPEN_BOTH]
    for _ in range(2):
        subprocess.run([*command, *uris], cwd=ROOT, check=True)
    swapped = subprocess.run([*command, *reversed(uris)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "StoreError" in swapped.stderr
    assert "own-study" in swapped.stderr


def test_several_processes_make_the_databases_at_once(postgres: PostgreSQL) -> None:
    """Row 5 on PostgreSQL."""
    uris = [postgres.create("raced-mlflow"), postgres.create("raced-study")]
    command = [sys.executable, "-c", OPEN_BOTH, *uris]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4


def test_a_dry_run_makes_no_tables(shared_site: SharedSite) -> None:
    """Row 29 on PostgreSQL: an empty study database stays empty."""
    uri = shared_site.postgres.create("stays-empty")
    shared_site.storage = uri
    shared_site.search("--trials", "3", "--dry-run")
    assert shared_site.postgres.execute("stays-empty", "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []


def test_a_database_that_is_not_there_is_told_at_once(shared_site: SharedSite) -> None:
    """Row 7."""
    start = time.monotonic()
    done = shared_site.search(
        "--trials", "1", "--epochs", "1", "--storage", shared_site.postgres.uri("missing"), status=4
    )
    assert "missing" in done.err
    assert time.monotonic() - start < 60


def test_restarts_of_postgresql_and_of_the_server_amid_a_sweep(
    make_shared_site: Callable[[str], SharedSite], site: Site
) -> None:
    """Rows 8 and 10; results are those of a local run, and the password is nowhere."""
    shared = make_shared_site("restarts")
    process = shared.start_sweep(*CELLS_24, "--workers", "2")
    for n, disturb in [
        (2, lambda: shared.postgres.restart("fast")),
        (6, lambda: shared.postgres.restart("immediate")),
        (10, shared.server.restart),
        (14, lambda: os.kill(process.workers()[0], signal.SIGKILL)),
    ]:
        process.wait_for(lambda n=n: shared.n_cells("FINISHED") >= n)
        disturb()
    assert "signal 9" in process.done().out
    site.sweep(*CELLS_24)
    digests = shared.digests()
    assert len(digests) == 24
    assert digests == site.digests()
    cells = shared.open().find(TRANSFER, role="cell", status="FINISHED")
    assert {run.data.tags["trained_on"] for run in cells} == {os.uname().nodename}
    check_no_password(shared)


def test_a_search_and_a_sweep_straight_on_postgresql(shared_site: SharedSite, site: Site) -> None:
    """Without an MLflow server, which one machine can do; row 10: MLflow itself does not try again."""
    uri = shared_site.postgres.create(f"{shared_site.name}-direct")
    shared_site.search("--trials", "2", "--epochs", "1", uri=uri)
    process = shared_site.start_sweep(*CELLS_24, uri=uri)
    query = "SELECT count(*) FROM runs WHERE status = 'FINISHED'"
    before = shared_site.postgres.execute(f"{shared_site.name}-direct", query)[0][0]
    process.wait_for(lambda: shared_site.postgres.execute(f"{shared_site.name}-direct", query)[0][0] >= before + 3)
    shared_site.postgres.restart("immediate")
    process.done()
    finished = open_store(uri).find(TRANSFER, status="FINISHED", role="cell")
    assert len(finished) == 24
    check_no_password(shared_site)


def test_a_second_machine_is_refused_until_the_first_is_known_to_be_gone(shared_site: SharedSite, site: Site) -> None:
    """Row 12 for a sweep: machine ids decide, for both have the same host name."""
    alpha = shared_site.start_sweep(*CELLS_24, fault="machine:alpha", finished=2)
    shared_site.sweep(*CELLS_24, fault="machine:beta", status=5)
    alpha.wait_for(lambda: shared_site.n_cells("FINISHED") >= 4)  # it was not disturbed
    alpha.kill()
    shared_site.sweep(*CELLS_24, fault="machine:beta", status=5)  # nobody knows yet
    shared_site.sweep(*CELLS_24, "--take-over", fault="machine:beta")
    assert shared_site.n_cells("RUNNING") == 0
    assert shared_site.n_cells("KILLED") >= 1
    site.sweep(*CELLS_24)
    assert shared_site.digests() == site.digests()


def test_of_two_machines_that_begin_a_search_at_once_one_goes_on(shared_site: SharedSite) -> None:
    """Row 12 for a study that neither has begun before."""
    machines = [shared_site.start_search("--trials", "8", "--epochs", "100", fault=f"machine:{m}") for m in "ab"]
    assert sorted(machine.done(0, 5).status for machine in machines) == [0, 5]
    assert len(shared_site.trials()) == 8
    assert len(shared_site.open().find(TUNING, role="study")) == 1


def test_a_second_machine_is_refused_in_a_search(shared_site: SharedSite) -> None:
    """Row 12 for a search; with PostgreSQL and the server restarted meanwhile (rows 8 and 10)."""
    arguments = ["--trials", "16", "--epochs", "60"]
    alpha = shared_site.start_search(*arguments, fault="machine:alpha")
    alpha.wait_for(lambda: shared_site.n_trials("COMPLETE") >= 1)
    shared_site.postgres.restart("fast")
    shared_site.search(*arguments, fault="machine:beta", status=5)
    alpha.wait_for(lambda: shared_site.n_running_trials() >= 1)
    alpha.kill()
    n_ended = shared_site.n_trials("COMPLETE") + shared_site.n_trials("PRUNED")
    assert n_ended < 16
    beta = shared_site.start_search(*arguments, "--take-over", fault="machine:beta")
    beta.wait_for(lambda: shared_site.n_trials("COMPLETE") + shared_site.n_trials("PRUNED") > n_ended)
    shared_site.server.restart()
    shared_site.postgres.restart("immediate")
    beta.done()
    counted = shared_site.trials()
    assert len(counted) == 16
    runs = shared_site.open().find(TUNING, role="trial")
    logged = [int(run.data.tags["trial"]) for run in runs if "complete" in run.data.tags]
    assert sorted(logged) == sorted(trial.number for trial in counted)
    check_no_password(shared_site)
