"""Checks that what descriptions in MLflow's UI point to exists."""

import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

from fmnist_transfer.store.roles import VIEW_TAG
from fmnist_transfer.store.runs import Store


def addresses(markdown: str) -> list[str]:
    """Of its links and pictures."""
    found = re.findall(r"\]\(([^()\s]*)\)", markdown)
    assert len(found) == markdown.count("]("), "a link that is no link"
    return found


def check(store: Store, address: str) -> None:
    """Raise an error unless the store has the page."""
    client = store.client
    if address.startswith("get-artifact?"):
        query = parse_qs(urlsplit(address).query, strict_parsing=True)
        assert set(query) == {"path", "run_uuid"}
        _check_artifact(store, query["run_uuid"][0], query["path"][0])
    elif match := re.fullmatch(r"#/experiments/(\d+)/runs(?:\?(.+))?", address):
        tags = client.get_experiment(match[1]).tags
        query = parse_qs(match[2], strict_parsing=True)
        assert query["workflowType"] == ["machine_learning"]
        if "viewStateShareKey" in query:
            view = json.loads(json.loads(tags[f"{VIEW_TAG}{query['viewStateShareKey'][0]}"])["state"])
            if "compareRunsMode" in query:
                assert client.search_runs([match[1]], view["searchFilter"]), f"{address} shows nothing"
    elif match := re.fullmatch(r"#/experiments/(\d+)/runs/([0-9a-f]{32})(?:/artifacts/(.+))?", address):
        info = client.get_run(match[2]).info
        assert (info.experiment_id, info.lifecycle_stage) == (match[1], "active")
        if match[3]:
            _check_artifact(store, match[2], match[3])
    elif match := re.fullmatch(r"#/models/([^/]+)(?:/versions/(\d+))?", address):
        client.get_registered_model(unquote(match[1]))
        if match[2]:
            client.get_model_version(unquote(match[1]), match[2])
    else:
        raise AssertionError(f"{address} is no page of MLflow")


def _check_artifact(store: Store, run_id: str, path: str) -> None:
    there = [file.path for file in store.client.list_artifacts(run_id, path.rpartition("/")[0])]
    assert path in there, f"{path} is not among {there}"
