"""What was measured, as JSON, CSV and metrics."""

import csv
import json
from pathlib import Path

import pytest

from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.store.roles import BENCHMARK
from fmnist_transfer.store.runs import Store


def test_spread_of_measurements() -> None:
    measured = Measurements()
    measured.add("ratio_vs_naive", [3.0, 1.0, 2.0, 10.0])
    assert measured.lines[0]["spread"] == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}


@pytest.fixture
def measured() -> Measurements:
    measured = Measurements()
    measured.add("naive_images_per_s", [1.0, 2.0, 3.0])
    measured.add("ours_images_per_s, one worker", [8.0])
    measured.add("fraction_of_limit", [0.8])
    measured.add("seconds to 93.33 %, ours", [0.1, 0.2])
    return measured


def test_json_holds_median_min_and_max_and_null_for_what_was_not_measured(measured: Measurements) -> None:
    result = json.loads(json.dumps(measured.to_json("cpu: x")))
    assert result["naive_images_per_s"] == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert result["time_to_reference_ratio"] is None
    assert result["device"] == "cpu: x"
    assert [line["spread"]["n"] for line in result["lines"]] == [3, 1, 1, 2]


def test_json_names_what_is_asked_of_the_default_and_the_reference_network() -> None:
    names = {"default_images_per_s", "default_fraction_of_limit", "default_bf16_speedup"}
    names |= {"reference_images_per_s", "reference_fraction_of_limit", "naive_bf16_images_per_s"}
    assert names <= Measurements().to_json("cpu: x").keys()


def test_the_result_is_logged(measured: Measurements, store: Store) -> None:
    measured.log(store, {"quick": True, "device": "cpu: x"})
    (run,) = store.find(BENCHMARK, role="benchmark")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"quick": "True", "device": "cpu: x"}
    assert run.data.metrics["seconds to 93.33 percent ours"] == pytest.approx(0.15)
    (file,) = store.client.list_artifacts(run.info.run_id)
    rows = list(csv.reader(Path(store.client.download_artifacts(run.info.run_id, file.path)).read_text().splitlines()))
    assert file.path == "benchmark.csv"
    assert rows[0] == ["name", "median", "min", "max", "n", "unit", "goal", "comment"]
    assert len(rows) == 1 + 4
    assert rows[-1][:6] == ["seconds to 93.33 %, ours", "0.15", "0.1", "0.2", "2", "s"]
