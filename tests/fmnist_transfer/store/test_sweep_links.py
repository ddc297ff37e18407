"""A sweep and the version that it starts from name each other, and a user's word stays."""

import re
from typing import Any

import pytest
from faults.proving import register_model, small_model
from pages import addresses

from fmnist_transfer.store import sweep_links
from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.registry import resolve
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from fmnist_transfer.store.sweep_links import SWEEP_TAG, SWEEPS_HEAD, note_sweep


@pytest.fixture
def model_store(store: Store) -> Store:
    register_model(store, small_model())
    return store


def _sweep(store: Store, name: str = "cnn2/1 on classes 56789", uri: str = "models:/cnn2/best") -> str:
    run_id = store.start(TRANSFER, name, tags={"role": "sweep"})
    note_sweep(store, resolve(store, uri), run_id, name)
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

    assert _description(store) == f"{before}{SWEEPS_HEAD}\n\n{line(one)}"
    other = _sweep(store)
    both = f"{before}{SWEEPS_HEAD}\n\n{line(other)}\n{line(one)}"
    assert _description(store) == both
    note_sweep(store, resolve(store, "models:/cnn2/best"), other, "cnn2/1 on classes 56789")
    assert _description(store) == both
    store.client.update_model_version("cnn2", "1", description=_description(store).replace(before, "My own words."))
    note_sweep(store, resolve(store, "models:/cnn2/best"), one, "cnn2/1 on classes 56789")
    assert _description(store) == f"My own words.{SWEEPS_HEAD}\n\n{line(one)}\n{line(other)}"
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


def test_a_version_with_many_sweeps_names_the_last_and_stays_within_its_limit(
    model_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_links, "DESCRIPTION_LENGTH", len(_description(model_store)) + 400)
    for _ in range(4):
        last = _sweep(model_store)
    text = _description(model_store)
    assert len(text) <= sweep_links.DESCRIPTION_LENGTH
    assert len(addresses(text)) == 2
    assert f"run `{last}`" in text
    assert re.search(r"\b2 more\b", text.splitlines()[-1])
    tags = model_store.client.get_model_version("cnn2", "1").tags
    assert sum(key.startswith(SWEEP_TAG) for key in tags) == 4
    monkeypatch.setattr(sweep_links, "DESCRIPTION_LENGTH", 10)
    _sweep(model_store)
    assert _description(model_store) == text


@pytest.mark.parametrize("kind", ["model id", "run"])
def test_a_model_without_a_version_is_the_runs_input_alone(kind: str, model_store: Store) -> None:
    pinned = resolve(model_store, "models:/cnn2/1")
    uri = f"models:/{pinned.model_id}" if kind == "model id" else f"runs:/{pinned.run_id}/cnn2"
    assert resolve(model_store, uri).version is None
    before = _description(model_store)
    run_id = _sweep(model_store, uri=uri)
    assert _description(model_store) == before
    inputs: Any = model_store.client.get_run(run_id).inputs.model_inputs
    assert [model.model_id for model in inputs] == [pinned.model_id]
