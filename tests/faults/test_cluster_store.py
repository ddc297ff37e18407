"""Rows 5, 10, 11, 13, 14, 15 and 30 of the fault matrix: PostgreSQL, a server, and several machines at one sweep.

Another machine is a process whose host has another name and whose leases are seconds.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from postgres import PostgreSQL, SharedSite, check_no_password
from proving import ROOT, MakeSite, Site

from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER, TUNING

pytestmark = pytest.mark.cluster

CELLS_24 = ["--fractions", "20", "40", "60", "100", "--replicates", "3", "--epochs", "60"]
LONG_24 = [*CELLS_24[:-1], "100"]  # epochs: a second command starts well before the first has ended
ALPHA, BETA = "lease:3 host:alpha", "lease:3 host:beta"
OPEN_BOTH = """
import sys
from pathlib import Path
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.retry import RetryPolicy
from tuning.study.storage import patient_storage, storage_uri
open_store(sys.argv[1]).client.search_experiments()
patient_storage(storage_uri(sys.argv[2], Path(), RetryPolicy()), RetryPolicy())
"""


def test_four_processes_at_once_make_both_databases(postgres: PostgreSQL) -> None:
    """Row 5 on PostgreSQL."""
    uris = [postgres.create("racing-mlflow"), postgres.create("racing-study")]
    command = [sys.executable, "-c", OPEN_BOTH, *uris]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    # Row 26: neither is taken for the other.
    swapped = subprocess.run([*command[:3], *reversed(uris)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "racing-study is not MLflow's: it holds other tables" in swapped.stderr
    assert "StoreError" in swapped.stderr


def test_a_database_that_is_not_there_is_told_at_once(shared_site: SharedSite) -> None:
    start = time.monotonic()
    done = shared_site.search("--trials", "1", "--epochs", "1", "--storage", shared_site.postgres.uri("missing"))
    assert done.status == 4
    assert 'database "missing" does not exist' in done.err
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("module", ["ray", "psycopg"])
def test_what_is_not_installed_is_told_with_what_to_install(site: Site, module: str) -> None:
    """Row 30."""
    flags = {"ray": ["--engine", "ray"], "psycopg": ["--storage", "postgresql://someone@host/study"]}
    done = site.search(*flags[module], fault=f"not-installed:{module}")
    extra = {"ray": "ray", "psycopg": "postgres"}[module]
    assert done.status == 2
    assert f"needs: pip install 'fmnist-transfer[{extra}]'" in done.err


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
    done = process.done()
    assert done.status == 0, done.err
    assert "the worker process died (signal 9" in done.out
    assert site.sweep(*CELLS_24).status == 0
    digests = shared.digests()
    assert len(digests) == 24
    assert digests == site.digests()
    (parent,) = shared.open().find(TRANSFER, role="sweep")
    assert parent.data.tags["hosts"] == f"{os.uname().nodename}: 24 cells"
    check_no_password(shared)


def test_a_search_and_a_sweep_straight_on_postgresql(shared_site: SharedSite, site: Site) -> None:
    """Without an MLflow server, which one machine can do; row 10: MLflow itself does not try again."""
    uri = shared_site.postgres.create(f"{shared_site.name}-direct")
    assert shared_site.search("--trials", "2", "--epochs", "1", uri=uri).status == 0
    process = shared_site.start_sweep(*CELLS_24, uri=uri)
    query = "SELECT count(*) FROM runs WHERE status = 'FINISHED'"
    before = shared_site.postgres.execute(f"{shared_site.name}-direct", query)[0][0]
    process.wait_for(lambda: shared_site.postgres.execute(f"{shared_site.name}-direct", query)[0][0] >= before + 3)
    shared_site.postgres.restart("immediate")
    done = process.done()
    assert done.status == 0, done.err
    finished = open_store(uri).find(TRANSFER, status="FINISHED", role="cell")
    assert len(finished) == 24
    check_no_password(shared_site)


def test_a_second_machine_helps_and_both_are_on_the_parent(shared_site: SharedSite, site: Site) -> None:
    """Row 11: without `--join` it is refused, with it no cell is trained twice."""
    alpha = shared_site.start_sweep(*LONG_24, fault=ALPHA)
    alpha.wait_for(lambda: shared_site.n_claims() >= 1)
    refused = shared_site.sweep(*LONG_24, fault=BETA)
    assert refused.status == 5, refused.err
    assert "another process works on this sweep (host alpha, pid " in refused.err
    beta = shared_site.sweep(*LONG_24, "--join", fault=BETA)
    assert beta.status == 0, beta.err
    assert "Helping with sweep" in beta.out
    assert alpha.done().status == 0
    assert site.sweep(*LONG_24).status == 0
    assert shared_site.digests() == site.digests()
    store = shared_site.open()
    (parent,) = store.find(TRANSFER, role="sweep")
    hosts = dict(one.split(": ") for one in parent.data.tags["hosts"].split(", "))
    assert set(hosts) == {"alpha", "beta"}
    assert sum(int(n.removesuffix(" cells")) for n in hosts.values()) == 24
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["attempt"] for run in shared_site.cells()} == {"1"}


def test_helpers_that_all_start_at_once_make_one_sweep(shared_site: SharedSite) -> None:
    """As the tasks of a Slurm array do."""
    hosts = [f"lease:3 host:node{i}" for i in range(3)]
    processes = [shared_site.start_sweep(*CELLS_24, "--join", fault=host) for host in hosts]
    done = [process.done() for process in processes]
    assert [one.status for one in done] == [0] * 3, [one.err for one in done]
    assert len(shared_site.digests()) == 24
    (parent,) = shared_site.open().find(TRANSFER, role="sweep")
    assert parent.info.status == "FINISHED"
    assert "report/report.html" in {
        file.path for file in shared_site.open().client.list_artifacts(parent.info.run_id, "report")
    }


def test_the_owner_s_machine_dies_and_its_helper_finishes_the_sweep(shared_site: SharedSite, site: Site) -> None:
    """Rows 14 and 29."""
    alpha = shared_site.start_sweep(*CELLS_24, fault=ALPHA)
    alpha.wait_for(lambda: shared_site.n_cells("FINISHED") >= 2)
    beta = shared_site.start_sweep(*CELLS_24, "--join", fault=BETA)
    beta.wait_for(lambda: "Helping with sweep" in beta.out and shared_site.n_cells("RUNNING") >= 2)
    alpha.kill()
    done = beta.done()
    assert done.status == 0, done.err
    assert site.sweep(*CELLS_24).status == 0
    assert shared_site.digests() == site.digests()
    (parent,) = shared_site.open().find(TRANSFER, role="sweep")
    assert (parent.info.status, parent.data.tags["host"]) == ("FINISHED", "beta")


def test_a_machine_that_slept_past_its_lease_goes_on_with_the_next_cell(shared_site: SharedSite) -> None:
    """Row 15: meanwhile another took over the sweep and its open cell."""
    alpha = shared_site.start_sweep(*CELLS_24, fault=ALPHA)
    alpha.wait_for(lambda: shared_site.n_claims() >= 3)
    os.kill(alpha.pid, signal.SIGSTOP)  # in the midst of the third cell
    beta = shared_site.start_sweep(*CELLS_24, fault=BETA)
    beta.wait_for(lambda: "waiting up to 3 s for a sign of life" in beta.out)
    beta.wait_for(lambda: shared_site.n_cells("KILLED") >= 1)
    os.kill(alpha.pid, signal.SIGCONT)
    woken, done = alpha.done(), beta.done()
    assert done.status == 0, done.err
    assert woken.status == 0, woken.err
    assert "another process took it over while this one was away" in woken.out
    assert "Another process has taken over sweep" in woken.out
    assert len(shared_site.digests()) == 24
    (parent,) = shared_site.open().find(TRANSFER, role="sweep")
    assert (parent.info.status, parent.data.tags["host"]) == ("FINISHED", "beta")


def test_machines_that_die_and_restarts_at_one_search(shared_site: SharedSite) -> None:
    """Rows 8, 10, 13, 14 and 29: `--trials` is a total, none is lost, and one who is left finishes the search."""
    arguments = ["--trials", "24", "--epochs", "3"]
    alpha = shared_site.start_search(*arguments, fault=ALPHA)
    alpha.wait_for(lambda: shared_site.n_trials("COMPLETE") >= 2)
    shared_site.postgres.restart("fast")
    beta = shared_site.start_search(*arguments, fault=BETA)
    gamma = shared_site.start_search(*arguments, fault="lease:3 host:gamma")
    for helper in (beta, gamma):
        helper.wait_for(lambda helper=helper: "Helping with study" in helper.out)
    gamma.wait_for(lambda: shared_site.n_running_trials() >= 2)
    gamma.kill()
    shared_site.server.restart()
    shared_site.postgres.restart("immediate")
    alpha.wait_for(lambda: shared_site.n_trials("COMPLETE") + shared_site.n_trials("PRUNED") >= 12)
    alpha.kill()
    done = beta.done()
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    counted = shared_site.trials()
    assert len(counted) == 24
    assert {trial.user_attrs["trained_on"] for trial in counted} >= {"alpha", "beta"}
    store = shared_site.open()
    (parent,) = store.find(TUNING, role="study")
    assert (parent.info.status, parent.data.tags["host"]) == ("FINISHED", "beta")
    runs = store.find(TUNING, role="trial")
    assert sorted(int(run.data.tags["trial"]) for run in runs if "complete" in run.data.tags) == sorted(
        trial.number for trial in counted
    )
    assert "alpha: " in parent.data.tags["hosts"]
    check_no_password(shared_site)


def test_a_machine_that_slept_in_a_search_leaves_it_to_the_other(shared_site: SharedSite) -> None:
    """Row 15."""
    arguments = ["--trials", "10", "--epochs", "30"]
    alpha = shared_site.start_search(*arguments, fault=ALPHA)
    alpha.wait_for(lambda: shared_site.n_trials("COMPLETE") >= 2 and shared_site.n_running_trials() >= 1)
    os.kill(alpha.pid, signal.SIGSTOP)
    beta = shared_site.start_search(*arguments, fault=BETA)
    beta.wait_for(lambda: shared_site.n_trials("FAIL") >= 1)
    os.kill(alpha.pid, signal.SIGCONT)
    woken, done = alpha.done(), beta.done()
    assert done.status == 0, done.err
    assert woken.status == 0, woken.err
    assert "another process took it over while this one was away" in woken.out
    assert "Another process has taken over study" in woken.out
    counted = shared_site.trials()
    assert len(counted) == 10
    runs = shared_site.open().find(TUNING, role="trial")
    assert sorted(int(run.data.tags["trial"]) for run in runs) == sorted(trial.number for trial in counted)


def test_a_local_store_is_helped_with_by_a_second_terminal(make_site: MakeSite) -> None:
    """The same on sqlite, on one machine."""
    one, other = make_site("one"), make_site("other")
    first = one.start_sweep(*LONG_24)
    first.wait_for(lambda: one.n_claims() >= 1)
    second = one.sweep(*LONG_24, "--join")
    assert second.status == 0, second.err
    assert "Helping with sweep" in second.out
    assert len({run.data.tags["pid"] for run in one.cells()}) == 2
    assert first.done().status == 0
    assert other.sweep(*LONG_24).status == 0
    assert one.digests() == other.digests()
