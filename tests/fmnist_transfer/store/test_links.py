"""Addresses of MLflow's pages, and the view of a sweep's curves."""

import json
from urllib.parse import parse_qs

from fmnist_transfer.store.links import (
    curves_page,
    curves_view,
    experiment_page,
    line_chart,
    model_page,
    run_page,
)
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store


def test_addresses() -> None:
    training = "workflowType=machine_learning"
    assert experiment_page("2") == f"#/experiments/2/runs?{training}"
    assert experiment_page("2", "cells") == f"#/experiments/2/runs?viewStateShareKey=cells&{training}"
    assert run_page("2", "abc") == "#/experiments/2/runs/abc"
    assert run_page("2", "abc", "report/report.html") == "#/experiments/2/runs/abc/artifacts/report/report.html"
    assert model_page("cnn2") == "#/models/cnn2"
    assert model_page("my net", 3) == "#/models/my%20net/versions/3"


def test_a_sweeps_view_finds_its_curves(store: Store) -> None:
    sweep = store.start(TRANSFER, "sweep", tags={"role": "sweep"})
    mine = store.start(TRANSFER, "random", parent=sweep, tags={"role": "curve", "parent": sweep})
    store.start(TRANSFER, "random", parent="another", tags={"role": "curve", "parent": "another"})
    experiment_id = store.experiment(TRANSFER)
    page, _, query = curves_page(experiment_id, sweep).partition("?")
    assert page == f"#/experiments/{experiment_id}/runs"
    address = {key: value for key, (value,) in parse_qs(query, strict_parsing=True).items()}
    # With more than these in the address MLflow does not apply the view.
    expected = {"viewStateShareKey": sweep, "compareRunsMode": "CHART", "workflowType": "machine_learning"}
    assert address == expected
    saved = json.loads(
        curves_view("My curves", sweep, [line_chart("loss", bottom=0.5), line_chart("loss", by="images")], 1)
    )
    assert (saved["name"], saved["createdAt"], saved["updatedAt"]) == ("My curves", 1, 1)
    state = json.loads(saved["state"])
    found = store.client.search_runs([experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])
    assert [run.info.run_id for run in found] == [mine]
    assert state["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "curve"}]
    percent, images = state["compareRunCharts"]
    assert (percent["selectedMetricKeys"], percent["xAxisKey"], percent["xAxisScaleType"]) == (["loss"], "step", "log")
    assert (percent["range"], "range" in images) == ({"yMin": 0.5, "yMax": 1}, False)
    assert (images["selectedMetricKeys"], images["selectedXAxisMetricKey"]) == (["loss"], "images")
    assert {percent["metricSectionId"], images["metricSectionId"]} == {state["compareRunSections"][0]["uuid"]}
    assert percent["uuid"] != images["uuid"]
