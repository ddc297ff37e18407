"""What was measured, as JSON, CSV and metrics."""

import csv
import json

import pytest

from fmnist_transfer.benchmark.__main__ import BenchmarkSettings, log
from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.store.roles import BENCHMARK
from fmnist_transfer.store.runs import Store


def test_spread_of_measurements() -> None:
    measured = Measurements()
    measured.add("seconds to the first step", [3.0, 1.0, 2.0, 10.0])
    assert measured.lines[0].spread == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}


@pytest.fixture
def measured() -> Measurements:
    measured = Measurements()
    measured.add("naive_images_per_s", [1.0, 2.0, 3.0])
    measured.add("ours_images_per_s, one worker", [8.0])
    measured.add("fraction_of_limit", [0.8])
    measured.add("resume_seconds, 100 runs", [0.1, 0.2])
    return measured


def test_json_holds_median_min_and_max_and_null_for_what_was_not_measured(measured: Measurements) -> None:
    result = json.loads(json.dumps(measured.to_json("cpu: x")))
    assert result["naive_images_per_s"] == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert result["time_to_reference_ratio"] is None
    assert result["resume_seconds"] == {
        **{"median": pytest.approx(0.15), "min": 0.1, "max": 0.2, "n": 2},
        "by_runs": {"100": {"median": pytest.approx(0.15), "min": 0.1, "max": 0.2, "n": 2}},
    }
    assert result["device"] == "cpu: x"
    assert [line["spread"]["n"] for line in result["lines"]] == [3, 1, 1, 2]


def test_json_names_what_is_asked_of_the_default_and_the_reference_network() -> None:
    names = {"default_images_per_s", "default_fraction_of_limit", "default_bf16_speedup"}
    names |= {"reference_images_per_s", "reference_fraction_of_limit", "naive_bf16_images_per_s"}
    assert names <= Measurements().to_json("cpu: x").keys()


def test_csv_holds_every_line(measured: Measurements) -> None:
    rows = list(csv.reader(measured.to_csv().splitlines()))
    assert rows[0] == ["name", "median", "min", "max", "n", "unit", "goal", "comment"]
    assert len(rows) == 1 + 4
    assert rows[-1][:6] == ["resume_seconds, 100 runs", "0.15", "0.1", "0.2", "2", "s"]


def test_the_result_is_logged(measured: Measurements, store: Store) -> None:
    settings = BenchmarkSettings(quick=True, tracking_uri=store.uri)
    log(store, settings, measured, measured.to_json("cpu: x"))
    (run,) = store.find(BENCHMARK, role="benchmark")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["resume_seconds 100 runs"] == pytest.approx(0.15)
    files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert files == {"benchmark.csv"}
