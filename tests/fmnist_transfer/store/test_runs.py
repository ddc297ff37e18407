"""Runs: what they carry, how they end, who owns them, and what is said of them."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.store import retry
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.roles import NOTE, TRANSFER, TUNING
from fmnist_transfer.store.runs import TAG_LENGTH, Run, Store


def test_artifacts_lie_beside_a_users_own_database(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = store.start(TRANSFER, "a run")
    store.client.log_text(run_id, "hello", "note.md")
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
    assert "56789" in data.dataset.name
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


@pytest.mark.parametrize("is_made", [True, False])
def test_a_run_whose_response_was_lost_is_looked_for_before_it_is_created_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    create, calls = store.once.create_run, []

    def lose_the_first(*arguments: Any) -> Run:
        calls.append(create(*arguments) if calls or is_made else None)
        if len(calls) == 1:
            raise requests.exceptions.ConnectionError("Connection reset")
        return calls[-1]

    monkeypatch.setattr(store.once, "create_run", lose_the_first)
    run_id = store.start(TRANSFER, "a run")
    assert [run.info.run_id for run in store.find(TRANSFER)] == [run_id]
    assert len(calls) == (1 if is_made else 2)


def test_orphans_are_ended_and_nothing_of_the_living(store: Store) -> None:
    here = Owner.this_process()
    dead = store.start(TUNING, "dead", tags=replace(here, pid=2**22 + 1).to_tags())
    elsewhere = replace(here, machine="another machine", pid=1)
    others = [store.start(TUNING, "mine"), store.start(TUNING, "away", tags=elsewhere.to_tags())]
    store.end_orphans(TUNING)
    assert store.client.get_run(dead).info.status == "KILLED"
    assert [store.client.get_run(run_id).info.status for run_id in others] == ["RUNNING"] * 2


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
