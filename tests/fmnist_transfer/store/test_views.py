"""What experiments say of themselves, and that a user's word stays."""

import json
import re
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from fmnist_transfer.store.links import NOTES, VIEWS, experiment_page
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import BENCHMARK, EXPERIMENTS, KIND, NOTE, TRANSFER, TUNING, VIEW_TAG, View
from fmnist_transfer.store.runs import Store


def links(markdown: str) -> list[tuple[str, str]]:
    """(text, address) of each link."""
    return re.findall(r"\[([^\]]*)\]\(([^)]*)\)", markdown)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_is(name: str, store: Store) -> None:
    experiment_id = store.experiment(name)
    tags = store.client.get_experiment(experiment_id).tags
    views = VIEWS.get(name, {})
    ours = {key for key in tags if not key.startswith("mlflow.experiment.")}
    assert ours >= {KIND, NOTE, *(f"{VIEW_TAG}{view}" for view in views)}
    assert tags[KIND] == "custom_model_development"
    tables = [link for link in links(tags[NOTE]) if "compareRunsMode" not in link[1]]
    assert tables == [(view.title, experiment_page(experiment_id, key)) for key, view in views.items()]
    assert ("Look at: " in tags[NOTE]) == bool(views)
    for key, view in views.items():
        state = view.state
        saved = json.loads(tags[f"{VIEW_TAG}{key}"])
        assert set(saved) == {"name", "createdAt", "updatedAt", "state"}
        assert saved["name"] == view.title
        assert saved["createdAt"] > 1_700_000_000_000  # milliseconds
        assert json.loads(saved["state"]) == state
        assert {"selectedColumns", "searchFilter", "orderByKey", "orderByAsc"} <= set(state)
        assert state["orderByKey"] in {*state["selectedColumns"], "attributes.start_time"}
        store.client.search_runs([experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])


def test_every_experiment_has_a_note() -> None:
    assert set(NOTES) == set(EXPERIMENTS) == {TUNING, TRANSFER, BENCHMARK}
    assert set(VIEWS) == {TUNING, TRANSFER}


def test_what_a_user_changes_of_an_experiment_stays(store: Store) -> None:
    experiment_id = store.experiment(TRANSFER)
    store.client.set_experiment_tag(experiment_id, NOTE, "mine")
    store.client.set_experiment_tag(experiment_id, f"{VIEW_TAG}{View.CELLS}", "{}")
    store.client.delete_experiment_tag(experiment_id, f"{VIEW_TAG}{View.MEANS}")
    again = open_store(store.uri)
    assert again.experiment(TRANSFER) == experiment_id
    tags = again.client.get_experiment(experiment_id).tags
    assert (tags[NOTE], tags[f"{VIEW_TAG}{View.CELLS}"]) == ("mine", "{}")
    assert f"{VIEW_TAG}{View.MEANS}" in tags  # an experiment of before gets what there is by now


def test_another_command_describes_the_experiment_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see no tag, and one inserts it first: the other goes on."""
    set_tag = type(store.once).set_experiment_tag

    def lose(*arguments: Any) -> None:
        set_tag(*arguments)
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key")

    monkeypatch.setattr(type(store.once), "set_experiment_tag", lose)
    experiment_id = store.experiment(TRANSFER)
    assert {KIND, NOTE} <= set(store.client.get_experiment(experiment_id).tags)
