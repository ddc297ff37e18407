"""Rows 4, 8, 11 to 15 and 24, for searches: no trial lost or counted twice, `best` always whole."""

import contextlib
import os
import sqlite3

import optuna
import pytest
from proving import MakeSite, Server, Site

from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import TUNING

SMALL = ["--trials", "2", "--epochs", "1"]


@pytest.mark.parametrize("fault", ["before-version", "before-alias"])
def test_kill_9_while_registering_leaves_best_where_it_was(site: Site, fault: str) -> None:
    """Row 4: the new version, if it is there, is found by its tags; what is half-made goes."""
    store = site.open()
    old = load(store, resolve(store, "models:/cnn2/best"))
    site.search(*SMALL, "--promote", fault=fault, status=-9)
    assert resolve(store, "models:/cnn2/best").pinned == "models:/cnn2/1"
    assert load(store, resolve(store, "models:/cnn2/best")).spec == old.spec
    retrained = {run.info.run_id for run in site.retrained("FINISHED")}
    assert len(retrained) == 1
    site.search(*SMALL, "--promote", "--json", str(site.json))
    assert {run.info.run_id for run in site.retrained("FINISHED")} == retrained
    assert (site.result()["version"], site.result()["promoted"]) == (2, True)
    assert load(store, resolve(store, "models:/cnn2/best")).facts["study"] == "cnn2"
    versions = store.client.search_model_versions("name = 'cnn2'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert len(store.client.search_logged_models([store.experiment(TUNING)])) == 2
    assert len(site.trials()) == 2


def test_a_study_database_that_is_locked_for_long(make_site: MakeSite) -> None:
    """Row 8 for Optuna: what has been trained is kept, and the next command goes on."""
    site = make_site(bare=True)
    arguments = ["--trials", "4", "--epochs", "2"]
    process = site.start_search(*arguments, "--store-timeout", "1")
    process.wait_for(lambda: len(site.trials()) >= 1 if site.n_running_trials() else False)
    with contextlib.closing(sqlite3.connect(site.study_database, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = process.done(4)
        other.rollback()
    assert "locked" in done.err
    numbers = [trial.number for trial in site.trials()]
    site.search(*arguments)
    assert len(site.trials()) == 4
    assert [trial.number for trial in site.trials()][: len(numbers)] == numbers


def test_a_second_driver_of_the_same_study_is_refused(make_site: MakeSite) -> None:
    """Row 11."""
    site = make_site(bare=True)
    process = site.start_search("--trials", "1", "--epochs", "100000", running=1)
    site.search("--trials", "1", "--epochs", "100000", status=5).names(
        f"host {os.uname().nodename}", f"pid {process.pid}", "since 2"
    )
    assert site.n_running_trials() == 1


def test_a_search_of_another_machine_is_left_alone_until_it_is_taken_over(site: Site, server: Server) -> None:
    """Row 12: the study is in a file that this machine sees, too, its runs on a server."""
    arguments = ["--trials", "2", "--epochs", "20", "--storage", str(site.study_database)]
    process = site.start_search(*arguments, uri=server.uri, running=1)
    process.kill()
    store = site.open()
    (parent,) = store.find(TUNING, role="study")
    assert parent.info.status == "RUNNING"
    store.log(parent.info.run_id, tags={"machine": "0123456789abcdef", "pid": 4711})
    site.search(*arguments, uri=server.uri, status=5).names(f"host {os.uname().nodename}, pid 4711")
    assert site.n_running_trials() == 1
    site.search(*arguments, "--take-over", uri=server.uri)
    assert site.n_running_trials() == 0
    assert len(site.trials()) == len(site.trial_runs()) == 2


def test_several_workers_run_exactly_the_trials_that_were_asked_for(make_site: MakeSite) -> None:
    """Row 29: a dry run counts them; the next command tops them up."""
    site = make_site(bare=True)
    site.search("--trials", "5", "--epochs", "1", "--workers", "3")
    assert len(site.trials()) == 5
    site.search("--trials", "7", "--epochs", "1", "--dry-run", "--json", str(site.json))
    assert (site.result()["n_trials"], site.result()["n_to_run"]) == (5, 2)
    site.search("--trials", "7", "--epochs", "1", "--workers", "3")
    assert [trial.number for trial in site.trials()] == list(range(7))
    assert sorted(int(run.data.tags["trial"]) for run in site.trial_runs()) == list(range(7))


def test_a_trial_that_diverges_is_pruned_and_never_best(make_site: MakeSite) -> None:
    """Row 14."""
    site = make_site(bare=True)
    site.search("--trials", "3", "--epochs", "1", fault="diverge:1")
    assert [trial.state.name for trial in site.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    (pruned,) = [run for run in site.trial_runs() if run.info.status == "KILLED"]
    assert pruned.data.tags["reason"].startswith("Diverged: ")
    assert "val_accuracy" not in pruned.data.metrics


def test_a_trial_that_raises_fails_alone_and_is_tried_again(make_site: MakeSite) -> None:
    """Row 15: 1 as long as it fails; the study counts each trial once."""
    site = make_site(bare=True)
    arguments = ["--trials", "3", "--epochs", "1"]
    for number in (1, 3):  # of the failing attempt
        done = site.search(*arguments, "--debug", fault=f"trial-raises:OutOfMemoryError:{number}", status=1)
        assert "OutOfMemoryError: planted" in done.out
        assert "Traceback" in done.out
        assert site.trial_states() == {0: "COMPLETE", number: "FAIL", 2: "COMPLETE"}
    failed = [run for run in site.trial_runs() if run.info.status == "FAILED"]
    assert sorted(run.data.tags["trial"] for run in failed) == ["1", "3"]
    assert all(run.data.tags["reason"].startswith("OutOfMemoryError: planted") for run in failed)
    site.search(*arguments)
    assert [(t.number, t.state.name) for t in site.trials()] == [(n, "COMPLETE") for n in (0, 2, 4)]
    params = {
        run.data.tags["trial"]: {k: v for k, v in run.data.params.items() if k.startswith(("spec.", "recipe."))}
        for run in site.trial_runs()
    }
    assert params["1"] == params["3"] == params["4"]


def test_a_retraining_that_raises_fails_alone_and_is_tried_again(make_site: MakeSite) -> None:
    """Row 15."""
    site = make_site(bare=True)
    arguments = ["--trials", "1", "--epochs", "1", "--retrain-seeds", "2"]
    for n_failed in (1, 2):
        done = site.search(*arguments, "--json", str(site.json), fault="retraining-raises:ValueError:2", status=1)
        assert "ValueError: planted" in done.out
        assert (len(site.retrained("FAILED")), len(site.retrained("FINISHED"))) == (n_failed, 1)
        assert (site.result()["version"], site.result()["retrained_sd"]) == (1, None)
    site.search(*arguments)
    accuracies = [run.data.metrics["final/val_accuracy"] for run in site.retrained("FINISHED")]
    version = site.open().client.get_model_version("cnn2", "2")
    assert version.tags["n_seeds"] == "2"
    assert float(version.tags["retrained_mean"]) == pytest.approx(sum(accuracies) / 2)


def test_a_deleted_study_is_begun_anew(make_site: MakeSite) -> None:
    """Row 24; and so is the run of a study that was deleted in MLflow: its trials are logged again."""
    site = make_site(bare=True)
    site.search(*SMALL)
    store = site.open()
    (parent,) = store.find(TUNING, role="study")
    store.client.delete_run(parent.info.run_id)
    site.search(*SMALL)
    (parent,) = store.find(TUNING, role="study")
    assert len(store.find(TUNING, role="trial", parent=parent.info.run_id)) == 2
    optuna.delete_study(study_name="cnn2", storage=site.study_uri)
    site.search(*SMALL)
    assert len(site.trials()) == 2
