"""Rows 4, 13, 14, 16 and 17 of the fault matrix, for searches: no trial lost or counted twice, `best` always whole."""

import contextlib
import sqlite3

import pytest
from proving import MakeSite, Site

from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import TUNING

SMALL = ["--trials", "2", "--epochs", "1"]


@pytest.mark.parametrize("fault", ["before-version", "before-alias"])
def test_kill_9_while_registering_leaves_best_where_it_was(site: Site, fault: str) -> None:
    """Row 4: the new version, if it is there, is found by its tags; what is half-made goes."""
    store = site.open()
    old = load(store, resolve(store, "models:/cnn2/best"))
    killed = site.search(*SMALL, "--promote", fault=fault)
    assert killed.status == -9
    assert resolve(store, "models:/cnn2/best").pinned == "models:/cnn2/1"
    assert load(store, resolve(store, "models:/cnn2/best")).spec == old.spec
    done = site.search(*SMALL, "--promote", "--json", str(site.json))
    assert done.status == 0, done.err
    assert "1 of 1 re-trainings are there already" in done.out or fault == "before-alias"
    assert (site.result()["version"], site.result()["promoted"]) == (2, True)
    assert load(store, resolve(store, "models:/cnn2/best")).facts["study"] == "cnn2"
    versions = store.client.search_model_versions("name = 'cnn2'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    experiment = store.experiment(TUNING)
    assert len(store.client.search_logged_models([experiment])) == 2
    assert len(site.trials()) == 2


def test_several_workers_run_exactly_the_trials_that_were_asked_for(make_site: MakeSite) -> None:
    """Row 13; and a dry run counts them."""
    site = make_site(bare=True)
    done = site.search("--trials", "5", "--epochs", "1", "--workers", "3")
    assert done.status == 0, done.err
    assert len(site.trials()) == 5
    dry = site.search("--trials", "7", "--epochs", "1", "--dry-run")
    assert "Study 'cnn2': 5 trials done, 2 would run" in dry.out
    done = site.search("--trials", "7", "--epochs", "1", "--workers", "3")
    assert done.status == 0, done.err
    assert [trial.number for trial in site.trials()] == list(range(7))
    assert sorted(int(run.data.tags["trial"]) for run in site.trial_runs()) == list(range(7))


def test_a_second_driver_of_the_same_study_is_refused(make_site: MakeSite) -> None:
    """Row 11."""
    site = make_site(bare=True)
    process = site.start_search("--trials", "1", "--epochs", "100000")
    process.wait_for(site.n_running_trials)
    second = site.search("--trials", "1", "--epochs", "100000")
    assert second.status == 5
    assert "error: another process works on this search (host" in second.err
    assert f"pid {process.pid}, since" in second.err


def test_a_trial_that_runs_out_of_memory_does_not_end_the_study(make_site: MakeSite) -> None:
    """Row 17."""
    site = make_site(bare=True)
    done = site.search("--trials", "3", "--epochs", "1", fault="memory:1")
    assert done.status == 1, done.err
    assert [trial.state.name for trial in site.trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    (failed,) = [run for run in site.trial_runs() if run.info.status == "FAILED"]
    assert failed.data.tags["reason"].startswith("OutOfMemoryError: CUDA out of memory")
    assert "a trial failed: OutOfMemoryError: CUDA out of memory" in done.out
    again = site.search("--trials", "3", "--epochs", "1")
    assert again.status == 0, again.err
    assert len(site.trials()) == 3


def test_a_trial_that_kills_its_worker_twice_fails_and_the_others_go_on(make_site: MakeSite) -> None:
    """Row 17."""
    site = make_site(bare=True)
    done = site.search("--trials", "3", "--epochs", "1", "--workers", "2", fault="kill-worker")
    assert done.status == 1, done.err
    assert len(site.trials()) == 3
    (failed,) = [trial for trial in site.trials() if trial.state.name == "FAIL"]
    assert failed.user_attrs["reason"] == "the worker process died, twice"
    assert len(site.trial_runs()) == 3


def test_a_study_database_that_is_locked_for_long(make_site: MakeSite) -> None:
    """Row 8 for Optuna: what has been trained is kept, and the next command goes on."""
    site = make_site(bare=True)
    arguments = ["--trials", "4", "--epochs", "2"]
    process = site.start_search(*arguments, "--store-timeout", "1")
    process.wait_for(lambda: len(site.trials()) >= 1 if site.n_running_trials() else False)
    with contextlib.closing(sqlite3.connect(site.study_database, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = process.done()
        other.rollback()
    assert done.status == 4, done.err
    assert "(database is locked). Finished work is kept; run the same command to go on" in done.err
    again = site.search(*arguments)
    assert again.status == 0, again.err
    assert len(site.trials()) == 4


def test_a_trial_that_diverges_is_pruned_and_never_best(make_site: MakeSite) -> None:
    """Row 16."""
    site = make_site(bare=True)
    done = site.search("--trials", "3", "--epochs", "1", fault="diverge:1")
    assert done.status == 0, done.err
    assert [trial.state.name for trial in site.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    (pruned,) = [run for run in site.trial_runs() if run.info.status == "KILLED"]
    assert pruned.data.tags["reason"] == "Diverged: training loss is nan at epoch 1, step 1"
    assert "val_accuracy" not in pruned.data.metrics


def test_reaping_clears_what_a_killed_search_left(make_site: MakeSite) -> None:
    """Row 14: the trial that died is failed and run again by itself; the runs of another study only if asked."""
    site = make_site(bare=True)
    process = site.start_search("--trials", "1", "--epochs", "100000", "--study-name", "other")
    process.wait_for(site.n_running_trials)
    process.kill()
    done = site.search("--trials", "1", "--epochs", "1", "--reap")
    assert done.status == 0, done.err
    assert "Reaped: 1 runs of dead processes ended as KILLED" in done.out
    assert {run.info.status for run in site.open().find(TUNING)} == {"FINISHED", "KILLED"}
