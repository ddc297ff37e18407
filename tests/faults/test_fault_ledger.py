"""Rows 9, 11, 12, 14, 16 and 17 of the fault matrix, for sweeps: who owns a cell, and what is redone."""

import json
import os
import re
from dataclasses import asdict, replace

import pytest
from proving import RECIPE, MakeSite, Server, Site, register_model, small_model

from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.training.recipe import Recipe

SMALL = ["--fractions", "20", "100", "--replicates", "1", "--epochs", "1"]  # 4 cells
ENDLESS = ["--fractions", "100", "--replicates", "1", "--epochs", "100000"]


def test_a_second_driver_of_the_same_sweep_is_refused(site: Site) -> None:
    """Row 11; a dry run is let in, for it changes nothing."""
    process = site.start_sweep(*ENDLESS)
    process.wait_for(lambda: site.n_claims() == 1)
    second = site.sweep(*ENDLESS)
    assert second.status == 5
    owner = rf"host {re.escape(os.uname().nodename)}, pid {process.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(rf"error: another process works on this sweep \({owner}\); wait for it", second.err)
    assert site.n_cells("RUNNING") == 1
    dry = site.sweep(*ENDLESS, "--dry-run")
    assert dry.status == 0, dry.err
    assert "0 of 2 cells would be left as they are, 2 would run" in dry.out
    assert site.n_cells("RUNNING") == 1


def test_a_sweep_of_another_host_is_left_alone(site: Site, server: Server) -> None:
    """Row 11 on a server: a lock does not reach there, what the owner wrote of itself does."""
    assert site.sweep(*SMALL, uri=server.uri).status == 0
    store = site.open()
    (parent,) = store.find(TRANSFER, role="sweep")
    store.client.update_run(parent.info.run_id, status="RUNNING")
    elsewhere = Owner("another-host", 4711, "", 100.0)
    store.log(parent.info.run_id, params={"owner.2": json.dumps(asdict(elsewhere))})
    refusing = site.start_sweep(*SMALL, uri=server.uri)
    refusing.wait_for(lambda: "belongs to host another-host, pid 4711; waiting up to" in refusing.out)
    store.client.set_tag(parent.info.run_id, f"sign.{elsewhere.name}", "1")  # it lives
    refused = refusing.done()
    assert refused.status == 5
    assert "another process works on this sweep (host another-host, pid 4711); wait for it" in refused.err
    here_and_dead = Owner(os.uname().nodename, 2**22 + 1, Owner.this_process().boot, 1.0)
    store.log(parent.info.run_id, params={"owner.3": json.dumps(asdict(here_and_dead))})
    assert site.sweep(*SMALL, uri=server.uri).status == 0


def test_two_different_sweeps_at_once(site: Site) -> None:
    """Row 12."""
    processes = [site.start_sweep(*SMALL, "--seed", seed) for seed in ("1", "2")]
    done = [process.done() for process in processes]
    assert [one.status for one in done] == [0, 0], [one.err for one in done]
    assert len(site.open().find(TRANSFER, role="sweep")) == 2
    assert [run.info.status for run in site.cells()] == ["FINISHED"] * 8


def test_reaping_ends_what_the_dead_left_and_nothing_of_the_living(site: Site) -> None:
    """Rows 9 and 14."""
    dead = site.start_sweep(*ENDLESS)
    dead.wait_for(lambda: site.n_claims() == 1)
    dead.kill()
    living = site.start_sweep(*ENDLESS, "--seed", "1")
    living.wait_for(lambda: site.n_claims() == 2)
    assert site.sweep(*SMALL).status == 0
    store = site.open()
    parent = next(run for run in store.find(TRANSFER, role="sweep") if run.info.status == "FINISHED")
    tags = {"role": "cell", "parent": parent.info.run_id}
    ghost = store.start(TRANSFER, "ghost", tags=tags | replace(Owner.this_process(), pid=2**22 + 1).to_tags())
    done = site.sweep(*SMALL, "--reap")
    assert done.status == 0, done.err
    assert "Reaped: 1 runs that were no cell's deleted, 2 of dead processes ended as KILLED" in done.out
    assert store.client.get_run(ghost).info.lifecycle_stage == "deleted"
    running = store.find(TRANSFER, status="RUNNING")
    assert {run.data.tags["pid"] for run in running} == {str(living.pid)}
    assert len(running) == 2


def test_a_dry_run_says_what_is_done_and_what_would_run(site: Site) -> None:
    new = site.sweep(*SMALL, "--dry-run", "--json", str(site.json))
    assert new.status == 0, new.err
    assert "A new sweep: cnn2/1 on classes 56789" in new.out
    assert (site.result()["n_to_run"], site.result()["sweep_run_id"]) == (4, None)
    assert site.open().find(TRANSFER) == []
    assert site.sweep(*SMALL).status == 0
    more = site.sweep("--fractions", "20", "60", "100", *SMALL[3:], "--dry-run")
    assert re.search(r"20 +1 finished +1 finished\n60 +1 to run +1 to run\n100 +1 finished +1 finished\n", more.out)
    assert "4 of 6 cells would be left as they are, 2 would run" in more.out
    assert len(site.cells()) == 4


def test_a_cell_that_diverges_fails_alone_and_is_redone_only_if_asked(site: Site) -> None:
    """Row 16: a learning rate beyond float32 makes the second loss NaN."""
    recipe = Recipe(**RECIPE.to_dict() | {"optimizer": "sgd", "learning_rate": 1e38, "weight_decay": 0.0})
    register_model(site.open(), small_model(recipe=recipe), "hot")
    arguments = ["--model-uri", "models:/hot/best", *SMALL]
    done = site.sweep(*arguments)
    assert done.status == 1
    cells = site.cells()
    assert [run.info.status for run in cells] == ["FAILED"] * 4
    for run in cells:
        why = r"Diverged: (training loss is nan at epoch 1, step 2|validation loss is nan after epoch 1, step 1)"
        assert re.fullmatch(why, run.data.tags["reason"]), run.data.tags["reason"]
        assert "final/val_loss" not in run.data.metrics
    assert done.out.count("failed: Diverged: ") == 4
    assert "4 of 4 cells are missing" in done.out
    assert site.sweep(*arguments).status == 1
    assert len(site.cells()) == 4
    assert site.sweep(*arguments, "--retry-failed").status == 1
    assert sorted(run.data.tags["attempt"] for run in site.cells()) == ["1"] * 4 + ["2"] * 4


def test_a_cell_that_runs_out_of_memory_fails_alone_and_is_redone(site: Site) -> None:
    """Row 17."""
    done = site.sweep(*SMALL, fault="cell-memory:20")
    assert done.status == 1
    assert "pretrained 020% r0 failed: OutOfMemoryError: CUDA out of memory" in done.out
    assert sorted(run.info.status for run in site.cells()) == ["FAILED"] * 2 + ["FINISHED"] * 2
    done = site.sweep(*SMALL)
    assert done.status == 0, done.err
    assert "2 cells are there already, 2 to go" in done.out


@pytest.mark.parametrize("order", [["20", "60", "100"], ["100", "60", "20"]])
def test_equal_cells_have_equal_weights_in_any_order_on_any_worker_and_after_a_kill(
    make_site: MakeSite, order: list[str]
) -> None:
    """And what results depend on is on the run."""
    rest = ["--replicates", "2", "--epochs", "20"]
    one, other = make_site("one"), make_site("other")
    assert one.sweep("--fractions", "60", "20", "100", *rest).status == 0
    arguments = ["--fractions", *order, *rest, "--workers", "2"]
    process = other.start_sweep(*arguments)
    process.wait_for(lambda: other.n_cells("FINISHED") >= 1 and other.n_cells("RUNNING") >= 1)
    process.kill()
    done = other.sweep(*arguments)
    assert done.status == 0, done.err
    digests = one.digests()
    assert len(digests) == 12
    assert other.digests() == digests
    assert len(set(digests.values())) == 12
    tags = one.cells()[0].data.tags
    assert tags["torch_threads"] == "1"
    assert tags["cpu_capability"]
    assert tags["torch_build"]
