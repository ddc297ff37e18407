"""Rows 11 to 15 and 24, for sweeps: who drives one, which cells are done, and what is trained again."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from proving import RECIPE, MakeSite, Server, Site, register_model, small_model

from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.roles import NOTE, TRANSFER

SMALL = ["--fractions", "20", "100", "--replicates", "1", "--epochs", "1"]  # 4 cells
ENDLESS = ["--fractions", "100", "--replicates", "1", "--epochs", "100000"]
TWO_CELLS = ["--fractions", "100", "--replicates", "1", "--epochs", "60"]


def test_a_second_driver_of_the_same_sweep_is_refused(site: Site) -> None:
    """Row 11; a dry run is let in, for it changes nothing."""
    process = site.start_sweep(*ENDLESS, running=1)
    site.sweep(*ENDLESS, status=5).names(f"host {os.uname().nodename}", f"pid {process.pid}", "since 2")
    assert site.n_cells("RUNNING") == 1
    site.sweep(*ENDLESS, "--dry-run", "--json", str(site.json))
    assert site.result()["n_to_run"] == 2
    assert site.n_cells("RUNNING") == 1


def test_a_second_driver_that_sees_no_lock_of_the_first_is_refused(site: Site, server: Server) -> None:
    """Row 11 on a server: another user's locks lie elsewhere, but the process lives."""
    process = site.start_sweep(*ENDLESS, uri=server.uri, running=1)
    elsewhere = {"XDG_STATE_HOME": str(site.scratch / "another user")}
    site.sweep(*ENDLESS, "--take-over", uri=server.uri, env=elsewhere, status=5).names(f"pid {process.pid}")
    assert site.n_cells("RUNNING") == 1


def test_a_driver_on_another_machine_is_left_alone_until_it_is_taken_over(site: Site, server: Server) -> None:
    """Row 12."""
    process = site.start_sweep(*TWO_CELLS, uri=server.uri, running=1)
    process.kill()
    store, here = site.open(), Owner.this_process()
    running = store.find(TRANSFER, status="RUNNING")
    assert {run.data.tags["role"] for run in running} == {"sweep", "cell"}
    another = replace(here, host="another-host", machine="0123456789abcdef", pid=4711)
    of_the_same_name, unknown = replace(another, host=here.host), replace(here, machine="", pid=4711)
    for owner in (another, unknown, of_the_same_name):
        for run in running:
            store.log(run.info.run_id, tags=owner.to_tags())
        site.sweep(*TWO_CELLS, uri=server.uri, status=5).names(f"host {owner.host}, pid 4711", "--take-over")
        assert {run.info.run_id for run in store.find(TRANSFER, status="RUNNING")} == {r.info.run_id for r in running}
    site.sweep(*TWO_CELLS, "--take-over", uri=server.uri)
    assert sorted(site.cell_states()) == ["FINISHED", "FINISHED", "KILLED"]
    (killed,) = site.cells(status="KILLED")
    assert killed.data.tags["machine"] == another.machine
    (parent,) = store.find(TRANSFER, role="sweep")
    assert (parent.info.status, parent.data.tags["machine"]) == ("FINISHED", here.machine)
    assert len(site.digests()) == 2


def test_two_different_sweeps_at_once(site: Site) -> None:
    """Row 13."""
    processes = [site.start_sweep(*SMALL, "--seed", seed) for seed in ("1", "2")]
    for process in processes:
        process.done()
    assert len(site.open().find(TRANSFER, role="sweep")) == 2
    assert site.cell_states() == ["FINISHED"] * 8


def test_a_cell_that_diverges_fails_alone_and_is_trained_again_only_if_asked(site: Site) -> None:
    """Row 14: a learning rate beyond float32 makes the second loss NaN."""
    recipe = replace(RECIPE, learning_rate=1e38, weight_decay=0.0)
    register_model(site.open(), small_model(recipe=recipe), "hot")
    arguments = ["--model-uri", "models:/hot/best", *SMALL]
    site.sweep(*arguments, "--json", str(site.json), status=1)
    assert [(cell["status"], cell["final"]) for cell in site.result()["cells"]] == [("failed", {})] * 4
    (parent,) = site.open().find(TRANSFER, role="sweep")
    assert "4 of 4" in parent.data.tags[NOTE]
    cells = site.cells()
    assert [run.info.status for run in cells] == ["FAILED"] * 4
    for run in cells:
        assert re.match(r"Diverged: .*epoch 1\b.*step \d", run.data.tags["reason"])
        assert "final/val_loss" not in run.data.metrics
    site.sweep(*arguments, status=1)
    assert len(site.cells()) == 4
    site.sweep(*arguments, "--retry-failed", status=1)
    assert site.cell_states() == ["FAILED"] * 8


@pytest.mark.parametrize("error", ["ValueError", "OutOfMemoryError"])
def test_a_cell_that_raises_fails_alone_and_is_tried_again(site: Site, error: str) -> None:
    """Row 15: 1 as long as it fails."""
    one = error == "ValueError"  # an attempt is enough for the other
    for n_failed in (2, 4)[: 1 + one]:
        done = site.sweep(*SMALL, *["--debug"] * one, fault=f"cell-raises:{error}:20", status=1)
        assert f"{error}: planted" in done.out
        assert ("Traceback" in done.out + done.err) == one
        failed = site.cells(status="FAILED")
        assert [run.data.tags["percent"] for run in failed] == ["020"] * n_failed
        assert all(run.data.tags["reason"].startswith(error) for run in failed)
        assert len(site.cells(status="FINISHED")) == 2
    site.sweep(*SMALL)
    assert len(site.digests()) == 4


def test_a_deleted_experiment_is_restored_by_the_command_that_is_shown(site: Site) -> None:
    """Row 24; the folder has a space, ü and #."""
    site.sweep(*SMALL)
    store = site.open()
    store.client.delete_experiment(store.experiment(TRANSFER))
    (command,) = re.findall("MLFLOW_TRACKING_URI=.* mlflow .*", site.sweep(*SMALL, status=4).err)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, capture_output=True, env=os.environ | path)
    site.sweep(*SMALL)
    assert len(site.cells()) == 4


def test_a_cell_that_is_deleted_while_it_trains_is_trained_again(site: Site) -> None:
    """Row 24: the others go on. So is a cell that was deleted when it was finished."""
    process = site.start_sweep(*TWO_CELLS, running=1)
    store = site.open()
    (deleted,) = site.cells(status="RUNNING")
    store.client.delete_run(deleted.info.run_id)
    process.done(1).names(deleted.info.run_id)
    (finished,) = site.cells()
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["cell_key"] != deleted.data.tags["cell_key"]
    store.client.delete_run(finished.info.run_id)
    site.sweep(*TWO_CELLS)
    assert len(site.digests()) == len(site.cells()) == 2


@pytest.mark.parametrize("order", [["20", "60", "100"], ["100", "60", "20"]])
def test_equal_cells_have_equal_weights_in_any_order_on_any_worker_and_after_a_kill(
    make_site: MakeSite, order: list[str]
) -> None:
    """Row 3; and what results depend on is on the run."""
    rest = ["--replicates", "2", "--epochs", "20"]
    one, other = make_site("one"), make_site("other")
    one.sweep("--fractions", "60", "20", "100", *rest)
    arguments = ["--fractions", *order, *rest, "--workers", "2"]
    process = other.start_sweep(*arguments)
    process.wait_for(lambda: other.n_cells("FINISHED") >= 1 and other.n_cells("RUNNING") >= 1)
    process.kill()
    other.sweep(*arguments)
    digests = one.digests()
    assert len(digests) == len(set(digests.values())) == 12
    assert other.digests() == digests
    assert other.n_cells("RUNNING") == 0
    tags = one.cells()[0].data.tags
    assert tags["torch_threads"] == "1"
    assert tags["cpu_capability"]
    assert tags["torch_build"]
