"""Rows 5 to 9 and 26 to 28 of the fault matrix: the store is missing, full, read-only, away, not ours, or elsewhere."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
import synthetic
from proving import ROOT, MakeSite, Server, Site, proxy_that_loses_responses, remount

from fmnist_transfer.store.roles import TRANSFER, TUNING

SMALL = ["--fractions", "20", "100", "--replicates", "1", "--epochs", "1"]  # 4 cells
SLOW = ["--fractions", "100", "--replicates", "5", "--epochs", "50"]  # 10 cells
CANARY = "canary-7f3a"


# Row 5


def test_four_commands_at_once_on_a_fresh_store(make_site: MakeSite) -> None:
    """Row 5, and row 12: searches of different studies do not disturb each other."""
    site = make_site(bare=True)
    site.folder.mkdir()
    for name in ("a", "b", "c", "d"):
        site.start_search("--trials", "1", "--epochs", "1", "--study-name", name)
        os.kill(site.processes[-1].pid, signal.SIGSTOP)
    for process in site.processes:
        os.kill(process.pid, signal.SIGCONT)
    done = [process.done() for process in site.processes]
    assert [one.status for one in done] == [0] * 4, [one.err for one in done]
    store = site.open()
    assert sorted(run.data.tags["study"] for run in store.find(TUNING, role="study")) == ["a", "b", "c", "d"]
    assert {run.info.status for run in store.find(TUNING)} == {"FINISHED"}
    assert len(store.client.search_model_versions("name = 'cnn2'")) == 4


def test_kill_9_while_the_store_is_made_leaves_none_or_a_good_one(make_site: MakeSite) -> None:
    site = make_site(bare=True)
    new = site.folder / ".mlflow.db.new"
    for kilobytes in (0, 100, 400, 800):  # of 950: however fast the machine, these are amid
        shutil.rmtree(site.folder, ignore_errors=True)
        process = site.start_search("--trials", "1", "--epochs", "1")
        process.wait_for(lambda size=1_000 * kilobytes: size_of(new / "mlflow.db") >= size)
        process.kill()
        assert new.exists()
        assert not site.database.exists()
    done = site.search("--trials", "1", "--epochs", "1")
    assert done.status == 0, done.err
    assert not new.exists()


def size_of(file: Path) -> int:
    """In bytes; -1 if it is not there."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


# Row 6


def test_a_full_disk_is_told_before_work_starts(make_site: MakeSite, small_disk: Path) -> None:
    site = make_site(bare=True)
    site.folder = small_disk
    done = site.search("--trials", "1", "--epochs", "1")
    assert done.status == 4
    assert f"error: cannot write {small_disk / 'mlflow.db'}: disk full (3 MB free)" in done.err
    assert not site.database.exists()
    remount(small_disk, "size=60m")
    done = site.search("--trials", "1", "--epochs", "1")
    assert done.status == 0, done.err


def test_a_read_only_store_is_told_before_work_starts(make_site: MakeSite, template: Path, small_disk: Path) -> None:
    site = make_site(bare=True)
    remount(small_disk, "size=60m")
    site.folder = small_disk / "store"
    synthetic.copy_store(template, site.folder)
    remount(small_disk, "ro")
    done = site.sweep(*SMALL)
    assert (done.status, done.err) == (4, f"error: cannot write {site.database}: read-only file system\n")
    remount(small_disk, "rw")
    assert site.sweep(*SMALL).status == 0


@pytest.mark.parametrize("freed", [True, False])
def test_a_disk_that_fills_up_amid_a_sweep(make_site: MakeSite, template: Path, small_disk: Path, freed: bool) -> None:
    site = make_site(bare=True)
    remount(small_disk, "size=60m")
    site.folder = small_disk / "store"
    synthetic.copy_store(template, site.folder)
    process = site.start_sweep(*SLOW, "--store-timeout", "120" if freed else "1")
    process.wait_for(lambda: site.n_cells("FINISHED") >= 2)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(2**12))
    if freed:
        process.wait_for(lambda: "note: the store does not answer (" in process.err)
        assert re.search(r"\((database or disk is full|No space left on device)\)", process.err)
        ballast.unlink()
        done = process.done()
        assert done.status == 0, done.err
        assert "note: the store answers again" in done.err
        assert len(site.cells()) == 10
    else:
        done = process.done()
        assert done.status == 4, done.err
        assert "disk is full). Finished work is kept; run the same command to go on" in done.err
        ballast.unlink()
        finished = {run.info.run_id for run in site.cells(status="FINISHED")}
        assert len(finished) >= 2
        assert site.sweep(*SLOW).status == 0
        assert finished <= {run.info.run_id for run in site.cells(status="FINISHED")}
    assert len(site.digests()) == 10


# Rows 7 and 8


def test_a_server_that_is_down_at_the_start_is_told_soon(site: Site) -> None:
    server = Server(site.folder)
    start = time.monotonic()
    done = site.sweep(*SMALL, uri=server.uri)
    assert done.status == 4
    assert f"error: no MLflow server at {server.uri} (Connection refused); start it" in done.err
    assert time.monotonic() - start < 60  # the client alone is silent for 248 s
    server.start()
    try:
        done = site.sweep(*SMALL, uri=server.uri)
        assert done.status == 0, done.err
        assert len(site.digests()) == 4
    finally:
        server.kill()


def test_a_server_that_is_restarted_amid_a_sweep_costs_nothing(site: Site, server: Server) -> None:
    process = site.start_sweep(*SLOW, uri=server.uri)
    process.wait_for(lambda: site.n_cells("FINISHED") >= 2)
    server.kill()
    notice = re.compile(r"note: the store does not answer \(.*\); trying again for up to 5 min 00 s")
    process.wait_for(lambda: notice.search(process.err))
    server.start()
    done = process.done()
    assert done.status == 0, done.err
    assert "note: the store answers again" in done.err
    assert len(site.digests()) == 10
    assert {run.data.tags["attempt"] for run in site.cells()} == {"1"}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_server_that_stays_away_costs_no_finished_result(site: Site, server: Server, stopped: bool) -> None:
    """What was trained while it was away waits in a file, and is uploaded first by the next command."""
    process = site.start_sweep(*SLOW, "--workers", "2", "--store-timeout", "600" if stopped else "4", uri=server.uri)
    process.wait_for(lambda: site.n_cells("FINISHED") >= 2)
    server.kill()
    process.wait_for(lambda: "the store does not answer" in process.err)
    if stopped:
        process.signal_group(signal.SIGINT)
    done = process.done()
    assert done.status == (130 if stopped else 4), done.err
    assert "(Connection refused). Finished work is kept; run the same command to go on" in done.err
    waiting = list(server.pending.glob("*/ending.json"))
    assert waiting
    kept = {file.parent.name for file in waiting if json.loads(file.read_text())["status"] == "FINISHED"}
    kept |= {run.info.run_id for run in site.cells(status="FINISHED")}
    server.start()
    again = site.sweep(*SLOW, "--workers", "2", uri=server.uri)
    assert again.status == 0, again.err
    assert f"{len(waiting)} results that the store could not take before are in it now" in again.out
    assert list(server.pending.glob("*/ending.json")) == []
    assert len(site.digests()) == 10
    finished = {run.info.run_id for run in site.cells(status="FINISHED")}
    assert kept <= finished


def test_a_server_that_goes_away_amid_a_search(site: Site, server: Server) -> None:
    """Trials are kept in the study; what is not in MLflow yet is logged by the next command."""
    arguments = ["--trials", "8", "--epochs", "10", "--storage", str(site.study_database)]
    process = site.start_search(*arguments, "--store-timeout", "2", uri=server.uri)
    process.wait_for(lambda: len(site.trial_runs()) >= 2)
    server.kill()
    done = process.done()
    assert done.status == 4, done.err
    assert "Finished work is kept; run the same command to go on" in done.err
    numbers = [trial.number for trial in site.trials()]
    server.start()
    again = site.search(*arguments, uri=server.uri)
    assert again.status == 0, again.err
    assert len(site.trials()) == 8
    assert [trial.number for trial in site.trials()][: len(numbers)] == numbers
    complete = [run for run in site.trial_runs() if "complete" in run.data.tags]
    assert sorted(int(run.data.tags["trial"]) for run in complete) == [trial.number for trial in site.trials()]


# Row 9


@pytest.mark.parametrize("path_end", ["/runs/create", "/runs/log-batch", "/model-versions/create", "/logged-models"])
def test_a_lost_response_makes_nothing_twice(site: Site, server: Server, path_end: str) -> None:
    with proxy_that_loses_responses(server.port, path_end, 2) as (uri, lost):
        done = site.sweep(*SMALL, uri=uri)
        assert done.status == 0, done.err
        if "model" in path_end:
            study = ["--storage", str(site.study_database), "--study-name", "other"]
            done = site.search("--trials", "1", "--epochs", "1", *study, uri=uri)
            assert done.status == 0, done.err
            store = site.open()
            assert len(store.client.search_model_versions("name = 'cnn2'")) == 2
            assert len(store.client.search_logged_models([store.experiment(TUNING)])) == 2
    assert len(lost) in (1, 2)
    assert "note: the store does not answer" in done.err
    assert len(site.cells()) == 4
    assert len(site.digests()) == 4
    assert len(site.open().find(TRANSFER, role="sweep")) == 1


# Row 26


def foreign(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def of_revision(revision: str) -> object:
    def change(database: Path) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))

    return change


OLD_MLFLOW, OLD_OPTUNA = "451aebb31d03", "v2.6.0.a"
WRONG = {
    "junk": (lambda path: path.write_text("this is no database at all"), "file is not a database; move it away"),
    "empty": (lambda path: path.touch(), "is an empty database; delete it"),
    "foreign": (foreign, "holds other tables (recipes ...). It is left as it is; give another one"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("which", ["mlflow.db", "optuna.db"])
def test_a_file_that_is_no_store_is_told_and_left_alone(make_site: MakeSite, name: str, which: str) -> None:
    site = make_site(bare=which == "mlflow.db")
    site.folder.mkdir(exist_ok=True)
    make, message = WRONG[name]
    database = site.folder / which
    make(database)
    before = database.read_bytes()
    done = site.search("--trials", "1", "--epochs", "1")
    assert done.status == 4
    assert f"{which}" in done.err
    assert message in done.err
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("which", "revision", "message"),
    [
        ("mlflow.db", OLD_MLFLOW, "was made by an older MLflow (schema 451aebb31d03"),
        ("mlflow.db", "ffffffffffff", "was made by a newer MLflow (schema ffffffffffff"),
        ("optuna.db", OLD_OPTUNA, "was made by an older Optuna (schema v2.6.0.a"),
        ("optuna.db", "v99.0.0.a", "was made by a newer Optuna (schema v99.0.0.a"),
    ],
)
def test_a_store_of_another_schema_is_neither_used_nor_upgraded(
    site: Site, which: str, revision: str, message: str
) -> None:
    assert site.search("--trials", "1", "--epochs", "1").status == 0
    of_revision(revision)(site.folder / which)
    before = dump(site.folder / which)
    done = site.search("--trials", "2", "--epochs", "1")
    assert done.status == 4
    assert message in done.err
    command = "upgrade" if "older" in message else "pip install --upgrade"
    assert command in done.err
    assert dump(site.folder / which) == before


def dump(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def test_each_database_refuses_to_be_the_other(site: Site) -> None:
    done = site.search("--trials", "1", "--epochs", "1", "--storage", str(site.database))
    assert done.status == 4
    assert "mlflow.db is not Optuna's: it holds other tables" in done.err


# Rows 27 and 28


@pytest.mark.parametrize("character", ["?", "%"])
def test_a_path_that_sqlite_uris_cannot_hold_is_refused(make_site: MakeSite, character: str) -> None:
    site = make_site(f"what{character}20", bare=True)
    done = site.search("--trials", "1", "--epochs", "1")
    assert done.status == 4
    assert "a path with ? or % cannot be written as a sqlite URI; use another folder" in done.err
    assert not site.folder.exists()


def test_a_moved_store_is_told_and_mended_by_one_command(make_site: MakeSite) -> None:
    """Row 28; and row 27: the folders have a space, ü and #."""
    site = make_site()
    done = site.sweep(*SMALL)
    assert done.status == 0, done.err
    moved = site.folder.with_name("moved ä #2")
    old = site.folder
    site.folder.rename(moved)
    site.folder = moved
    arguments = [*SMALL[:1], "20", "60", "100", *SMALL[3:]]
    done = site.sweep(*arguments)
    assert done.status == 4
    command = f"python -m fmnist_transfer.repair --tracking-uri '{site.database}'"
    assert "was moved or copied" in done.err
    assert command in done.err
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    mended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert mended.returncode == 0, mended.stderr
    assert f"places now lie in {moved / 'artifacts'}" in mended.stdout
    done = site.sweep(*arguments)
    assert done.status == 0, done.err
    assert "4 cells are there already, 2 to go" in done.out
    assert not old.exists()
    again = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert again.stdout == "Nothing to repair\n"


# Passwords


def test_a_password_is_written_nowhere(site: Site, server: Server) -> None:
    uri = server.uri.replace("http://", f"http://someone:{CANARY}@")
    done = [
        site.sweep(*SMALL, uri="", env={"MLFLOW_TRACKING_URI": uri}),
        site.sweep("--fractions", "7", "--model-uri", "models:/cnn2/worst", uri=uri),
    ]
    assert [one.status for one in done] == [0, 3], done[0].err
    assert "note: a password on a command line is seen by every user" in done[1].err
    server.kill()
    done += [site.sweep(*SMALL, uri=uri), site.sweep(*SMALL, "--debug", uri=uri)]
    assert [one.status for one in done[2:]] == [4, 4]
    for one in done:
        assert CANARY not in one.out + one.err
    for one in done[1:]:  # the first has no reason to name the store
        assert "http://***@127.0.0.1" in one.out + one.err
    for file in site.folder.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
