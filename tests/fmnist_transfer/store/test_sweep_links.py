"""A sweep and the version that it starts from name each other."""

from typing import Any

import pytest
from faults.proving import register_model, small_model
from mlflow.exceptions import MlflowException

from fmnist_transfer.store.registry import SWEEP_TAG, note_sweep, resolve
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store


@pytest.fixture
def model_store(store: Store) -> Store:
    register_model(store, small_model())
    return store


def _sweep(store: Store, name: str = "cnn2/1 on classes 56789") -> str:
    run_id = store.start(TRANSFER, name, tags={"role": "sweep"})
    note_sweep(store, resolve(store, "models:/cnn2/best"), run_id, name)
    return run_id


def test_a_version_names_each_sweep_once(model_store: Store) -> None:
    store = model_store
    sweeps = [_sweep(store), _sweep(store)]
    note_sweep(store, resolve(store, "models:/cnn2/best"), sweeps[0], "cnn2/1 on classes 56789")
    version = store.client.get_model_version("cnn2", "1")
    tags = {key: value for key, value in version.tags.items() if key.startswith(SWEEP_TAG)}
    assert tags == {f"{SWEEP_TAG}{run_id}": "cnn2/1 on classes 56789" for run_id in sweeps}
    for run_id in sweeps:
        used = [model.model_id for model in store.client.get_run(run_id).inputs.model_inputs]
        assert used == [resolve(store, "models:/cnn2/1").model_id]


def test_a_version_that_may_only_be_read_stops_no_sweep(
    model_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise MlflowException("Permission denied", 3)

    monkeypatch.setattr(type(model_store.once), "set_model_version_tag", refuse)
    _sweep(model_store)
    assert "note: cannot name this sweep in a tag of models:/cnn2/1: Permission denied" in capsys.readouterr().err
