"""A sweep and the version that it starts from name each other, and a user's word stays."""

from typing import Any

import pytest
from faults.proving import register_model, small_model
from mlflow.exceptions import MlflowException

from fmnist_transfer.store import registry
from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.registry import SWEEP_TAG, SWEEPS_HEAD, note_sweep, resolve
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


def _description(store: Store) -> str:
    return store.client.get_model_version("cnn2", "1").description


def test_a_version_names_each_sweep_once(model_store: Store) -> None:
    store = model_store
    before = _description(store)
    one = _sweep(store)
    experiment_id = store.experiment(TRANSFER)

    def line(run_id: str) -> str:
        return f"- [cnn2/1 on classes 56789]({run_page(experiment_id, run_id)}), run `{run_id}`"

    assert _description(store) == f"{before}{SWEEPS_HEAD}\n{line(one)}"
    other = _sweep(store)
    both = f"{before}{SWEEPS_HEAD}\n{line(other)}\n{line(one)}"
    assert _description(store) == both
    note_sweep(store, resolve(store, "models:/cnn2/best"), other, "cnn2/1 on classes 56789")
    assert _description(store) == both
    store.client.update_model_version("cnn2", "1", description=both.replace(before, "My own words."))
    note_sweep(store, resolve(store, "models:/cnn2/best"), one, "cnn2/1 on classes 56789")
    assert _description(store) == both.replace(before, "My own words.")
    assert [model.model_id for model in store.client.get_run(other).inputs.model_inputs] == [
        resolve(store, "models:/cnn2/1").model_id
    ]


def test_what_a_user_writes_below_a_versions_sweeps_stays(model_store: Store) -> None:
    one = _sweep(model_store)
    listed = _description(model_store)
    mine = "I doubt the last one.\n\n- [my page](https://example.org)"
    model_store.client.update_model_version("cnn2", "1", description=f"{listed}\n\n{mine}")
    for _ in range(2):
        other = _sweep(model_store)
    text = _description(model_store)
    assert text.endswith(f"\n\n{mine}")
    assert [text.count(run_id) for run_id in (one, other)] == [2, 2]  # link and id, once each
    assert text.count("I doubt") == 1


def test_a_version_that_may_only_be_read_stops_no_sweep(
    model_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise MlflowException("Permission denied", 3)

    monkeypatch.setattr(type(model_store.once), "set_model_version_tag", refuse)
    _sweep(model_store)
    said = "note: cannot list this sweep in the description of models:/cnn2/1: Permission denied"
    assert said in capsys.readouterr().err


def test_a_version_with_many_sweeps_stays_within_its_limit(model_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DESCRIPTION_LENGTH", len(_description(model_store)) + 400)
    sweeps = [_sweep(model_store) for _ in range(4)]
    text = _description(model_store)
    assert len(text) <= registry.DESCRIPTION_LENGTH
    assert [f"run `{sweep}`" in text for sweep in sweeps] == [False, True, True, True]
    tags = model_store.client.get_model_version("cnn2", "1").tags
    assert {key for key in tags if key.startswith(SWEEP_TAG)} == {f"{SWEEP_TAG}{sweep}" for sweep in sweeps}
