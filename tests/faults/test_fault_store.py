"""Rows 5 to 9, 25 to 27 and 30: the store is missing, full, read-only, away, not ours, or elsewhere."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import synthetic
from proving import MakeSite, Server, Site, proxy, remount

from fmnist_transfer.store.roles import TRANSFER, TUNING

SMALL = ["--fractions", "20", "100", "--replicates", "1", "--epochs", "1"]  # 4 cells
SLOW = ["--fractions", "100", "--replicates", "5", "--epochs", "50"]  # 10 cells
CANARY = "canary-7f3a"


def test_four_commands_at_once_on_a_fresh_store(make_site: MakeSite) -> None:
    """Rows 5 and 13: searches of different studies do not disturb each other."""
    site = make_site(bare=True)
    site.folder.mkdir()
    for name in ("a", "b", "c", "d"):
        site.start_search("--trials", "1", "--epochs", "1", "--study-name", name)
        os.kill(site.processes[-1].pid, signal.SIGSTOP)
    for process in site.processes:
        os.kill(process.pid, signal.SIGCONT)
    for process in site.processes:
        process.done()
    store = site.open()
    assert sorted(run.data.tags["study"] for run in store.find(TUNING, role="study")) == ["a", "b", "c", "d"]
    assert {run.info.status for run in store.find(TUNING)} == {"FINISHED"}
    assert len(store.client.search_model_versions("name = 'cnn2'")) == 4


def test_kill_9_while_the_store_is_made_leaves_none_or_a_good_one(make_site: MakeSite) -> None:
    """Row 5."""
    site = make_site(bare=True)
    new = site.folder / ".mlflow.db.new"
    for kilobytes in (0, 100, 400, 800):  # of 950: however fast the machine, these are amid
        shutil.rmtree(site.folder, ignore_errors=True)
        process = site.start_search("--trials", "1", "--epochs", "1")
        process.wait_for(lambda size=1_000 * kilobytes: size_of(new / "mlflow.db") >= size)
        process.kill()
        assert new.exists()
        assert not site.database.exists()
    site.search("--trials", "1", "--epochs", "1")
    assert not new.exists()


def size_of(file: Path) -> int:
    """In bytes; -1 if it is not there."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


def test_a_full_disk_is_told_before_work_starts(make_site: MakeSite, small_disk: Path) -> None:
    """Row 6."""
    site = make_site(bare=True)
    site.folder = small_disk
    site.search("--trials", "1", "--epochs", "1", status=4).names(str(small_disk / "mlflow.db"), "full", "3 MB")
    assert not site.database.exists()
    remount(small_disk, "size=60m")
    site.search("--trials", "1", "--epochs", "1")


def test_a_read_only_store_is_told_before_work_starts(make_site: MakeSite, template: Path, small_disk: Path) -> None:
    """Row 6."""
    site = make_site(bare=True)
    remount(small_disk, "size=60m")
    site.folder = small_disk / "store"
    synthetic.copy_store(template, site.folder)
    remount(small_disk, "ro")
    site.sweep(*SMALL, status=4).names(str(site.database), "read-only")
    remount(small_disk, "rw")
    site.sweep(*SMALL)


@pytest.mark.parametrize("freed", [True, False])
def test_a_disk_that_fills_up_amid_a_sweep(make_site: MakeSite, template: Path, small_disk: Path, freed: bool) -> None:
    """Rows 6 and 8."""
    site = make_site(bare=True)
    remount(small_disk, "size=60m")
    site.folder = small_disk / "store"
    synthetic.copy_store(template, site.folder)
    process = site.start_sweep(*SLOW, "--store-timeout", "120" if freed else "1", finished=2)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(2**12))
    if freed:
        process.wait_for(lambda: "note:" in process.err)
        ballast.unlink()
        process.done()
        assert len(site.cells()) == 10
    else:
        process.done(4).names("full")
        ballast.unlink()
        finished = {run.info.run_id for run in site.cells(status="FINISHED")}
        assert len(finished) >= 2
        site.sweep(*SLOW)
        assert finished <= {run.info.run_id for run in site.cells(status="FINISHED")}
    assert len(site.digests()) == 10


def test_a_server_that_is_down_at_the_start_is_told_soon(site: Site) -> None:
    """Row 7."""
    server = Server(site.folder)
    start = time.monotonic()
    site.sweep(*SMALL, uri=server.uri, status=4).names(server.uri)
    assert time.monotonic() - start < 60  # the client alone is silent for 248 s
    server.start()
    try:
        site.sweep(*SMALL, uri=server.uri)
        assert len(site.digests()) == 4
    finally:
        server.kill()


def test_a_server_that_is_restarted_amid_a_sweep_costs_nothing(site: Site, server: Server) -> None:
    """Row 8."""
    process = site.start_sweep(*SLOW, uri=server.uri, finished=2)
    server.kill()
    process.wait_for(lambda: "note:" in process.err)
    server.start()
    assert process.done().err.count("note:") >= 2  # it does not answer, and it answers again
    assert len(site.cells()) == len(site.digests()) == 10


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_lost_server_did_not_take_is_trained_again_alike(
    site: Site, make_site: MakeSite, server: Server, stopped: bool
) -> None:
    """Row 8: retries until --store-timeout, or for some seconds after a signal."""
    seconds = "600" if stopped else "4"
    process = site.start_sweep(*SLOW, "--workers", "2", "--store-timeout", seconds, uri=server.uri, finished=2)
    server.kill()
    process.wait_for(lambda: "note:" in process.err)
    if stopped:
        process.signal_group(signal.SIGINT)
    process.done(130 if stopped else 4).names("python -m sweeps.transfer")
    finished = {run.info.run_id for run in site.cells(status="FINISHED")}
    assert 2 <= len(finished) < 10
    server.start()
    site.sweep(*SLOW, "--workers", "2", uri=server.uri)
    assert finished <= {run.info.run_id for run in site.cells(status="FINISHED")}
    assert site.n_cells("RUNNING") == 0
    digests = site.digests()
    assert len(digests) == 10
    if not stopped:
        undisturbed = make_site("undisturbed")
        undisturbed.sweep(*SLOW)
        assert digests == undisturbed.digests()


def test_a_server_that_goes_away_amid_a_search(site: Site, server: Server) -> None:
    """Row 8: trials are kept in the study; what is not in MLflow yet is logged by the next command."""
    arguments = ["--trials", "8", "--epochs", "10", "--storage", str(site.study_database)]
    process = site.start_search(*arguments, "--store-timeout", "2", uri=server.uri)
    process.wait_for(lambda: len(site.trial_runs()) >= 2)
    server.kill()
    process.done(4).names("python -m tuning.search")
    numbers = [trial.number for trial in site.trials()]
    server.start()
    site.search(*arguments, uri=server.uri)
    assert len(site.trials()) == 8
    assert [trial.number for trial in site.trials()][: len(numbers)] == numbers
    complete = [run for run in site.trial_runs() if "complete" in run.data.tags]
    assert sorted(int(run.data.tags["trial"]) for run in complete) == [trial.number for trial in site.trials()]


@pytest.mark.parametrize("path_end", ["/runs/create", "/runs/log-batch", "/model-versions/create", "/logged-models"])
def test_a_lost_response_makes_nothing_twice(site: Site, server: Server, path_end: str) -> None:
    """Row 9."""
    with proxy(server.port, loses=path_end, n=2) as (uri, lost):
        done = site.sweep(*SMALL, uri=uri)
        if "model" in path_end:
            study = ["--storage", str(site.study_database), "--study-name", "other"]
            done = site.search("--trials", "1", "--epochs", "1", *study, uri=uri)
            store = site.open()
            assert len(store.client.search_model_versions("name = 'cnn2'")) == 2
            assert len(store.client.search_logged_models([store.experiment(TUNING)])) == 2
    assert len(lost) in (1, 2)
    assert "note:" in done.err
    assert len(site.cells()) == 4
    assert len(site.digests()) == 4
    assert len(site.open().find(TRANSFER, role="sweep")) == 1


def foreign(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


OLD_MLFLOW, OLD_OPTUNA = "451aebb31d03", "v2.6.0.a"
WRONG = {
    "junk": lambda path: path.write_text("this is no database at all"),
    "empty": lambda path: path.touch(),
    "foreign": foreign,
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("which", ["mlflow.db", "optuna.db"])
def test_a_file_that_is_no_store_is_told_and_left_alone(make_site: MakeSite, name: str, which: str) -> None:
    """Row 25."""
    site = make_site(bare=which == "mlflow.db")
    site.folder.mkdir(exist_ok=True)
    database = site.folder / which
    WRONG[name](database)
    before = database.read_bytes()
    done = site.search("--trials", "1", "--epochs", "1", status=4)
    assert str(database) in done.err
    assert name != "foreign" or "recipes" in done.err
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("which", "revision", "part"),
    [
        ("mlflow.db", OLD_MLFLOW, "mlflow db upgrade"),
        ("mlflow.db", "ffffffffffff", "ffffffffffff"),
        ("optuna.db", OLD_OPTUNA, "optuna storage upgrade"),
        ("optuna.db", "v99.0.0.a", "optuna"),
    ],
)
def test_a_store_of_another_schema_is_neither_used_nor_upgraded(
    site: Site, which: str, revision: str, part: str
) -> None:
    """Row 25: one line, with the library's own words."""
    site.search("--trials", "1", "--epochs", "1")
    database = site.folder / which
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    before = dump(database)
    done = site.search("--trials", "2", "--epochs", "1", status=4)
    (line,) = done.err.splitlines()
    assert str(database) in line
    assert part in line
    assert dump(database) == before


def dump(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def test_each_database_refuses_to_be_the_other(site: Site) -> None:
    """Row 25."""
    before = dump(site.database)
    site.search("--trials", "1", "--epochs", "1", "--storage", str(site.database), status=4).names(str(site.database))
    tables, before = ([line for line in of if line.startswith("CREATE")] for of in (dump(site.database), before))
    assert tables == before


@pytest.mark.parametrize("character", ["?", "%"])
def test_a_path_that_sqlite_uris_cannot_hold_is_refused(make_site: MakeSite, character: str) -> None:
    """Row 26; all other tests have a space, ü and # in their paths."""
    site = make_site(f"what{character}20", bare=True)
    site.search("--trials", "1", "--epochs", "1", status=4).names(str(site.database))
    assert not site.folder.exists()


def test_a_moved_store_is_mended_when_it_is_opened(site: Site) -> None:
    """Row 27; and row 26: the folders have a space, ü and #."""
    site.sweep(*SMALL)
    old, site.folder = site.folder, site.folder.with_name("moved ä #2")
    old.rename(site.folder)
    places = dump(site.database)
    site.sweep(*SMALL, "--dry-run", status=4)
    assert dump(site.database) == places
    done = site.sweep("--fractions", "20", "60", "100", *SMALL[3:])
    assert done.err.count(str(site.folder)) == 1
    assert len(site.cells()) == len(site.digests()) == 6
    assert not old.exists()
    again = site.sweep("--fractions", "20", "60", "100", *SMALL[3:])
    assert (again.status, again.err) == (0, "")


def test_a_copied_store_is_used_only_if_it_is_to_be_mended(site: Site) -> None:
    """Row 27."""
    site.sweep(*SMALL)
    original = site.folder
    in_original = {file: time_of for file, time_of in site.files().items() if file.startswith(str(original))}
    site.folder = original.with_name("copied")
    shutil.copytree(original, site.folder)
    before = dump(site.database)
    site.sweep("--fractions", "60", *SMALL[3:], status=4).names(str(original), "--mend-copy")
    assert dump(site.database) == before
    site.sweep("--fractions", "60", *SMALL[3:], "--mend-copy")
    site.sweep("--fractions", "60", *SMALL[3:])
    assert len(site.cells()) == 6
    assert all(str(site.folder.name) in run.info.artifact_uri for run in site.cells())
    site.folder = original
    left = {file: time_of for file, time_of in site.files().items() if file.startswith(str(original))}
    assert left == in_original


def test_a_model_that_may_only_be_read_is_swept(site: Site, server: Server) -> None:
    """Row 30: what cannot be noted on the version is said once."""
    with proxy(server.port, forbids="/model-versions/") as (uri, refused):
        done = site.sweep(*SMALL, uri=uri)
    assert len(refused) >= 1
    assert done.err.count("models:/cnn2/1") == 1
    assert len(site.digests()) == 4
    version = site.open().client.get_model_version("cnn2", "1")
    assert not [key for key in version.tags if key.startswith("sweep.")]


def test_a_password_is_written_nowhere(site: Site, server: Server) -> None:
    """The rule above all rows: user information is masked everywhere."""
    uri = server.uri.replace("http://", f"http://someone:{CANARY}@")
    done = [
        site.sweep(*SMALL, uri="", env={"MLFLOW_TRACKING_URI": uri}),
        site.sweep("--fractions", "7", "--model-uri", "models:/cnn2/worst", uri=uri, status=3),
    ]
    assert "MLFLOW_TRACKING_URI" in done[1].err  # the note about command lines
    server.kill()
    done += [site.sweep(*SMALL, uri=uri, status=4), site.sweep(*SMALL, "--debug", uri=uri, status=4)]
    for one in done:
        assert CANARY not in one.out + one.err
    for one in done[1:]:  # the first has no reason to name the store
        assert "http://***@127.0.0.1" in one.out + one.err
    for file in site.folder.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
