"""Runs that a command has begun: each ends once, and none is left RUNNING."""

import pytest

from fmnist_transfer.data.examples import Half
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import OpenRuns, Run, Store


@pytest.fixture
def parent(store: Store) -> str:
    return store.start(TRANSFER, "a sweep")


@pytest.fixture
def runs(store: Store, parent: str, half: Half) -> OpenRuns[int]:
    runs = OpenRuns[int](store, TRANSFER, parent, Role.CELL, half=half, half_role="target")
    for key in range(4):
        runs.begin(key, f"cell {key}", {"percent": key}, {"cell_key": key})
    return runs


def found(store: Store, parent: str) -> dict[str, Run]:
    return {run.info.run_name: run for run in store.find(TRANSFER, role=Role.CELL, parent=parent)}


def test_each_run_ends_in_its_own_way_and_the_rest_is_killed(store: Store, parent: str, runs: OpenRuns[int]) -> None:
    assert {run.info.status for run in found(store, parent).values()} == {"RUNNING"}
    finished = runs.end(0, "FINISHED", metrics=[("final/val_loss", 0.25, 0)], files={"a.txt": b"hello"})
    failed = runs.fail(1, "ValueError: no", "Traceback ...")
    runs.end(2, "KILLED", tags={"reason": "stopped"})
    runs.kill_rest()
    runs.kill_rest()
    assert runs.end(0, "FINISHED") == ""  # it has ended
    by_name = found(store, parent)
    assert [by_name[f"cell {key}"].info.status for key in range(4)] == ["FINISHED", "FAILED", "KILLED", "KILLED"]
    assert (by_name["cell 0"].info.run_id, by_name["cell 1"].info.run_id) == (finished, failed)
    assert by_name["cell 0"].data.metrics == {"final/val_loss": 0.25}
    assert by_name["cell 0"].data.params["percent"] == "0"
    assert by_name["cell 1"].data.tags["reason"] == "ValueError: no"
    assert by_name["cell 0"].data.tags["mlflow.parentRunId"] == parent
    files = [[file.path for file in store.client.list_artifacts(run_id)] for run_id in (finished, failed)]
    assert files == [["a.txt"], ["traceback.txt"]]
