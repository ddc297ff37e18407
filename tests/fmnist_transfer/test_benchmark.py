"""The benchmark's arithmetic, and that its two contenders train the same network on the same images."""

import dataclasses
import json
from pathlib import Path

import optuna
import pytest
import torch

from fmnist_transfer import benchmark, findings, overheads, speed
from fmnist_transfer.benchmark.notebook_loop import NotebookPlan, notebook_data, notebook_epochs
from fmnist_transfer.data.examples import Half, load_half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.network.cost import training_mflops
from fmnist_transfer.store.roles import BENCHMARK
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.augmentation import normalise
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, History
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from tuning.space import first_trial, suggest

SPEC = CNN2Spec(channels=(3, 4), fc1=8, fc2=6)
RECIPE = Recipe(batch_size=32, epochs=2)


def test_training_costs_three_passes_less_the_first_input_gradient() -> None:
    spec = CNN2Spec(channels=(32, 64), fc1=256, fc2=128)
    first, second = 2 * 784 * 9 * 32, 2 * 196 * 9 * 32 * 64
    linear = 2 * (3136 * 256 + 256 * 128 + 128 * 5)
    assert training_mflops(spec) == pytest.approx((2 * first + 3 * second + 3 * linear) / 1e6)


def test_spread_of_measurements() -> None:
    spread = findings.Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.min, spread.max, spread.n) == (2.5, 1.0, 10.0, 4)


def test_the_notebook_sees_the_same_images(data_dir: Path) -> None:
    classes = (0, 2, 4, 6, 8)
    half = load_half(data_dir, classes)
    train, val = notebook_data(data_dir, classes, 30, 20)
    for pairs, examples in ((train, half.train), (val, half.val)):
        images = torch.stack([pairs[i][0] for i in range(len(pairs))])  # type: ignore[arg-type]
        torch.testing.assert_close(images, normalise(examples.images[: len(images)]), rtol=1e-4, atol=1e-5)
        assert [pairs[i][1] for i in range(len(images))] == examples.labels[: len(images)].tolist()
    assert (len(train), len(val)) == (30, 20)  # type: ignore[arg-type]


def test_the_notebook_learns(data_dir: Path) -> None:
    data = notebook_data(data_dir, (5, 6, 7, 8, 9), 250, 50)
    recipe = Recipe(batch_size=32, epochs=12, learning_rate=1e-2)
    epochs = list(notebook_epochs(SPEC, recipe, *data, device=torch.device("cpu"), seed=0))
    assert [epoch.n_images for epoch in epochs] == [250] * 12
    assert epochs[-1].val_accuracy > 0.5  # of five classes


def test_a_round_measures_both_and_the_limit(half: Half, data_dir: Path) -> None:
    work = speed.Workload(SPEC, RECIPE, half.train, half.val, "cpu")
    plan = NotebookPlan(data_dir, half.classes, 250, 50, SPEC, RECIPE, "cpu", n_threads=1)
    with StopSignal() as stop, Workers(1, stop) as workers:
        (one,) = speed.measure_rounds(workers, workers, [1], work, plan, n_rounds=1)
    assert one.notebook_images_per_s > 0
    assert set(one.ours) == set(one.gflops) == set(one.fits_per_hour) == {1}
    # A fit an hour trains 14 batches of 32; evaluation comes on top of that.
    assert one.fits_per_hour[1] * 14 * 32 / 3_600 < one.ours[1]
    share = speed.fraction_of_limit(one._replace(ours={1: 1e3}, gflops={1: 10.0}), SPEC)
    assert share == pytest.approx(training_mflops(SPEC) / 10)


def test_rates_count_every_network_and_leave_the_first_epoch_out(half: Half) -> None:
    def epoch(number: int, train_seconds: float) -> Epoch:
        return Epoch(number, 7 * number, 1.0, 1.0, 0.5, 1e-3, 2 * train_seconds, train_seconds)

    work = speed.Workload(SPEC, RECIPE, half.train, half.val, "cpu")
    history = History((epoch(1, 100.0), epoch(2, 2.0)), 1, {})
    assert speed._images_per_s(history, work, 1) == pytest.approx(7 * 32 / 2)
    assert speed._images_per_s(history, work, 0) == pytest.approx(14 * 32 / 102)


def test_the_stack_trains_what_the_single_network_does(half: Half) -> None:
    work = speed.Workload(SPEC, RECIPE, half.train, half.val, "cpu")
    with StopSignal() as stop, Workers(1, stop) as workers:
        assert 0 < speed.stacked_speedup(workers, work, 0) < 100


def test_a_goal_that_is_missed_is_an_error(half: Half) -> None:
    work = speed.Workload(SPEC, dataclasses.replace(RECIPE, learning_rate=1e-9), half.train, half.val, "cpu")
    with (
        StopSignal() as stop,
        Workers(1, stop) as workers,
        pytest.raises(UserError, match=r"validation accuracy .* misses 93\.33%"),
    ):
        speed.seconds_to_goal(workers, work, 0)


def test_the_default_network_is_that_of_the_first_trial() -> None:
    trial = optuna.trial.FixedTrial(first_trial(4.0))
    assert suggest(trial, epochs=10, max_mflops=4.0) == (overheads.DEFAULT_SPEC, overheads.DEFAULT_RECIPE)


def times(cells: list[dict[str, float]], stage_seconds: float, wall: float) -> overheads.SweepTimes:
    result = {
        "cells": [{"n_train": cell.pop("n_train"), "cost": cell} for cell in cells],
        "stages": {"cells": stage_seconds},
        "seconds": wall - 1,
        "first_step_seconds": 4.0,
    }
    return overheads.SweepTimes(wall, result)


def test_shares_of_a_sweep() -> None:
    cell = {"n_train": 100, "seconds": 10.0, "train_seconds": 7.0, "val_seconds": 2.0}
    one = times([dict(cell) for _ in range(4)], 22.0, 25.0)
    assert one.first_step_seconds == 5.0
    shares = overheads.shares(one, n_workers=2)
    assert shares.outside == pytest.approx(100 * (1 - 40 / 50))
    assert shares.evaluation == pytest.approx(100 * 12 / 50)


def test_predicted_shares_of_the_default_sweep() -> None:
    small = {"n_train": 250, "seconds": 0.25 + 0.5, "train_seconds": 0.25, "val_seconds": 0.4}
    large = {"n_train": 5_000, "seconds": 5 + 0.5, "train_seconds": 5.0, "val_seconds": 0.4}
    one = times([small, large], (0.75 + 5.5 + 2 * 0.3) / 2, 10.0)
    shares = overheads.predicted_shares(one, n_workers=2)
    training = 10 * 6 * 250 * sum(range(5, 101, 5)) * 1e-3
    evaluation = 120 * (10 * 0.4 + 0.1)
    available = training + evaluation + 120 * 0.3 + 2 * (10 - 3.425)
    assert shares.outside == pytest.approx(100 * (1 - (training + evaluation) / available))
    assert shares.evaluation == pytest.approx(100 * evaluation / available)


@pytest.fixture
def found() -> findings.Findings:
    found = findings.Findings()
    found.add("naive_images_per_s", "images/s", [1.0, 2.0, 3.0])
    found.add("ours_images_per_s", "images/s", [8.0])
    found.add("fraction_of_limit", "", [0.8])
    found.add("resume_seconds, 100 runs", "s", [0.1, 0.2], comment="to find 8 finished cells")
    found.cells_per_hour = {1: 10.0, 2: 19.0}
    found.resume_seconds = {100: found.lines[-1].spread}
    return found


def test_json_holds_median_min_and_max_and_null_for_what_was_not_measured(found: findings.Findings) -> None:
    result = json.loads(json.dumps(findings.to_json(found, "cpu: x")))
    assert result["naive_images_per_s"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert result["time_to_reference_ratio"] is None
    assert result["resume_seconds"] == {
        **{"median": pytest.approx(0.15), "min": 0.1, "max": 0.2},
        "by_runs": {"100": {"median": pytest.approx(0.15), "min": 0.1, "max": 0.2}},
    }
    assert result["device"] == "cpu: x"


def test_the_result_is_logged(found: findings.Findings, store: Store) -> None:
    settings = benchmark.BenchmarkSettings(quick=True, tracking_uri=store.uri)
    benchmark.log(settings, found, findings.to_json(found, "cpu: x"), "cpu")
    (run,) = store.find(BENCHMARK, role="benchmark")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["resume_seconds 100 runs"] == pytest.approx(0.15)
    files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert files == {"benchmark.csv", "benchmark.png"}
