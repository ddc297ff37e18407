"""Runs: what they carry, how they end, who owns them, and what is said of them."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import Interrupted, StoreError
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import NOTE, TRANSFER, TUNING
from fmnist_transfer.store.runs import TAG_LENGTH, Store


def test_artifacts_lie_beside_a_users_own_database(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = store.start(TRANSFER, "a run")
    store.log_text(run_id, "note.md", "hello")
    assert [file.read_text() for file in (store.folder / "artifacts").rglob("note.md")] == ["hello"]
    assert not (tmp_path / "mlruns").exists()


def test_a_run_carries_params_tags_metrics_and_data(store: Store, half: Half) -> None:
    run_id = store.start(TRANSFER, "a run", params={f"p{i}": i for i in range(150)}, tags={"percent": 5})
    store.log(run_id, metrics=[("val/loss", 1 / epoch, epoch) for epoch in range(1, 1_201)])
    store.log_data(run_id, half, "target")
    store.end(run_id)
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert len(run.data.params) == 150
    assert run.data.tags["percent"] == "5"
    assert run.data.tags["pid"] == str(os.getpid())
    assert run.data.tags["package_version"] == "0.1.0"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["git_dirty"] in ("true", "false")
    assert len(store.client.get_metric_history(run_id, "val/loss")) == 1_200
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "Fashion-MNIST classes 56789"
    assert data.dataset.digest == half.data_sha256[:16]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (Interrupted("stop"), "KILLED"), (ValueError("oops"), "FAILED")]
)
def test_runs_end_truthfully(store: Store, error: Exception | None, status: str) -> None:
    run_id = store.start(TRANSFER, "a run")
    with contextlib.suppress(Interrupted, ValueError), store.ending(run_id):
        if error:
            raise error
    assert store.client.get_run(run_id).info.status == status


def test_find_reads_every_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        store.start(TRANSFER, f"run {i}", tags={"role": "cell"})
    search = store.client.search_runs
    monkeypatch.setattr(store.client, "search_runs", lambda *a, **k: search(*a, **k | {"max_results": 2}))
    assert len(store.find(TRANSFER, role="cell")) == 5


def test_a_run_is_reopened_by_its_owner(store: Store) -> None:
    run_id = store.start(TRANSFER, "sweep", tags={"host": "elsewhere"})
    store.reopen(store.client.get_run(run_id), {"seed": 1})
    run = store.client.get_run(run_id)
    assert (run.data.tags["host"], run.data.params, run.info.status) == (
        Owner.this_process().host,
        {"seed": "1"},
        "RUNNING",
    )


def test_orphans_are_ended_and_nothing_of_the_living(store: Store) -> None:
    here = Owner.this_process()
    dead = store.start(TUNING, "dead", tags=replace(here, pid=2**22 + 1).to_tags())
    elsewhere = replace(here, machine="another machine", pid=1)
    others = [store.start(TUNING, "mine"), store.start(TUNING, "away", tags=elsewhere.to_tags())]
    store.end_orphans(TUNING)
    assert store.client.get_run(dead).info.status == "KILLED"
    assert [store.client.get_run(run_id).info.status for run_id in others] == ["RUNNING"] * 2


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(store: Store) -> None:
    experiment_id = store.experiment(TRANSFER)
    store.client.delete_experiment(experiment_id)
    again = open_store(store.uri)
    with pytest.raises(StoreError, match=f"mlflow experiments restore --experiment-id {experiment_id}") as refused:
        again.find(TRANSFER)
    assert refused.value.exit_status == 4


def test_a_runs_description_is_refreshed_until_a_user_writes_one(store: Store) -> None:
    run_id = store.start(TRANSFER, "sweep")

    def note() -> str:
        return store.client.get_run(run_id).data.tags[NOTE]

    store.describe(run_id, "**Not finished yet**")
    store.describe(run_id, "The answer")
    assert note() == "The answer"
    store.client.set_tag(run_id, NOTE, "The answer, which I doubt")
    store.describe(run_id, "Another answer")
    assert note() == "The answer, which I doubt"
    store.client.set_tag(run_id, NOTE, "")  # as the UI does it
    store.describe(run_id, "Another answer")
    assert note() == "Another answer"


def test_a_description_that_is_too_long_is_cut_and_still_ours(store: Store) -> None:
    run_id = store.start(TRANSFER, "sweep")
    store.describe(run_id, "x" * (TAG_LENGTH + 1))
    assert store.client.get_run(run_id).data.tags[NOTE] == "x" * TAG_LENGTH
    store.describe(run_id, "short")
    assert store.client.get_run(run_id).data.tags[NOTE] == "short"
