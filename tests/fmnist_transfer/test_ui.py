"""Addresses of MLflow's pages; what experiments, runs and versions say of themselves, and that a user's word stays."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from faults.proving import register_model, small_model
from mlflow.exceptions import MlflowException

from fmnist_transfer import registry, ui
from fmnist_transfer.store.opening import EXPERIMENTS, open_store
from fmnist_transfer.store.registry import resolve
from fmnist_transfer.store.roles import BENCHMARK, KIND, NOTE, TRANSFER, TUNING, VIEW
from fmnist_transfer.store.runs import TAG_LENGTH, Store
from fmnist_transfer.store.sweep_links import SWEEPS_HEAD, note_sweep
from fmnist_transfer.store.views import VIEWS


def test_addresses() -> None:
    training = "workflowType=machine_learning"
    assert ui.experiment_page("2") == f"#/experiments/2/runs?{training}"
    assert ui.experiment_page("2", "cells") == f"#/experiments/2/runs?viewStateShareKey=cells&{training}"
    assert ui.run_page("2", "abc") == "#/experiments/2/runs/abc"
    assert ui.run_page("2", "abc", "report/report.html") == "#/experiments/2/runs/abc/artifacts/report/report.html"
    assert ui.model_page("cnn2") == "#/models/cnn2"
    assert ui.model_page("my net", 3) == "#/models/my%20net/versions/3"
    assert ui.picture("abc", "figures/a b.png", "losses") == (
        "![losses](get-artifact?path=figures/a%20b.png&run_uuid=abc)"
    )


def test_the_curves_page_finds_a_sweeps_curves(store: Store) -> None:
    sweep = store.start(TRANSFER, "sweep", tags={"role": "sweep"})
    mine = store.start(TRANSFER, "random", parent=sweep, tags={"role": "curve", "parent": sweep})
    store.start(TRANSFER, "random", parent="another", tags={"role": "curve", "parent": "another"})
    experiment_id = store.experiment(TRANSFER)
    page, _, query = ui.curves_page(experiment_id, sweep).partition("?")
    assert page == f"#/experiments/{experiment_id}/runs"
    state = {key: value for key, (value,) in parse_qs(query, strict_parsing=True).items()}
    assert state["orderByKey"] == "params.`init`"
    assert (state["compareRunsMode"], state["startTime"], state["orderByAsc"]) == ("CHART", "ALL", "true")
    found = store.client.search_runs([experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])
    assert [run.info.run_id for run in found] == [mine]


def links(markdown: str) -> list[tuple[str, str]]:
    """(text, address) of each link."""
    return re.findall(r"\[([^\]]*)\]\(([^)]*)\)", markdown)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_is(name: str, store: Store) -> None:
    experiment_id = store.experiment(name)
    tags = store.client.get_experiment(experiment_id).tags
    views = VIEWS.get(name, {})
    ours = {key for key in tags if not key.startswith("mlflow.experiment.")}
    assert ours >= {KIND, NOTE, *(f"{VIEW}{view}" for view in views)}
    assert tags[KIND] == "custom_model_development"
    assert links(tags[NOTE]) == [(title, ui.experiment_page(experiment_id, key)) for key, (title, _) in views.items()]
    assert ("Look at: " in tags[NOTE]) == bool(views)
    for key, (title, state) in views.items():
        saved = json.loads(tags[f"{VIEW}{key}"])
        assert set(saved) == {"name", "createdAt", "updatedAt", "state"}
        assert saved["name"] == title
        assert saved["createdAt"] > 1_700_000_000_000  # milliseconds
        assert json.loads(saved["state"]) == state
        assert {"selectedColumns", "searchFilter", "orderByKey", "orderByAsc"} <= set(state)
        assert state["orderByKey"] in {*state["selectedColumns"], "attributes.start_time"}
        store.client.search_runs([experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])


def test_every_experiment_has_a_note() -> None:
    assert set(ui.NOTES) == set(EXPERIMENTS) == {TUNING, TRANSFER, BENCHMARK}
    assert set(VIEWS) == {TUNING, TRANSFER}


def test_what_a_user_changes_of_an_experiment_stays(store: Store) -> None:
    experiment_id = store.experiment(TRANSFER)
    store.client.set_experiment_tag(experiment_id, NOTE, "mine")
    store.client.set_experiment_tag(experiment_id, f"{VIEW}{ui.CELLS}", "{}")
    store.client.delete_experiment_tag(experiment_id, f"{VIEW}{ui.MEANS}")
    again = open_store(store.uri)
    assert again.experiment(TRANSFER) == experiment_id
    tags = again.client.get_experiment(experiment_id).tags
    assert (tags[NOTE], tags[f"{VIEW}{ui.CELLS}"]) == ("mine", "{}")
    assert f"{VIEW}{ui.MEANS}" in tags  # an experiment of before gets what there is by now


def test_another_command_describes_the_experiment_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see no tag, and one inserts it first: the other goes on."""
    set_tag = type(store.once).set_experiment_tag

    def lose(*arguments: Any) -> None:
        set_tag(*arguments)
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key")

    monkeypatch.setattr(type(store.once), "set_experiment_tag", lose)
    experiment_id = store.experiment(TRANSFER)
    assert {KIND, NOTE} <= set(store.client.get_experiment(experiment_id).tags)


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
        return f"- [cnn2/1 on classes 56789]({ui.run_page(experiment_id, run_id)}), run `{run_id}`"

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


def test_a_version_that_may_only_be_read_stops_no_sweep(
    model_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise MlflowException("Permission denied", 3)

    monkeypatch.setattr(type(model_store.once), "set_model_version_tag", refuse)
    _sweep(model_store)
    said = "note: models:/cnn2/1 cannot name this sweep among those that start from it: Permission denied"
    assert said in capsys.readouterr().err


def test_a_version_with_many_sweeps_names_the_last_and_stays_within_its_limit(
    model_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DESCRIPTION_LENGTH", len(_description(model_store)) + 400)
    for _ in range(4):
        last = _sweep(model_store)
    text = _description(model_store)
    assert len(text) <= registry.DESCRIPTION_LENGTH
    assert len(links(text)) == 2
    assert f"run `{last}`" in text
    assert text.endswith("\n- and 2 more, which the tags name")
    tags = model_store.client.get_model_version("cnn2", "1").tags
    assert sum(key.startswith(registry.SWEEP_TAG) for key in tags) == 4
    monkeypatch.setattr(registry, "DESCRIPTION_LENGTH", 10)
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


def test_the_registered_model_says_how_it_is_transferred(model_store: Store) -> None:
    text = model_store.client.get_registered_model("cnn2").description
    assert "`python -m sweeps.transfer --model-uri models:/cnn2/best`" in text
    ids = [model_store.experiment(name) for name in (TUNING, TRANSFER)]
    assert [unquote(address) for _, address in links(text)] == [ui.experiment_page(one) for one in ids]
