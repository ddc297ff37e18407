"""The benchmark's arithmetic, and what its contenders are given to do."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fmnist_transfer.benchmark import loop, tasks
from fmnist_transfer.benchmark.loop import Contenders, seconds_to_goal
from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.benchmark.tasks import (
    Workload,
    fit_once,
    images_per_s,
    matrix_product,
    notebook_data,
    run_notebook,
)
from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC, CNN2Spec
from fmnist_transfer.network.cost import training_mflops
from fmnist_transfer.training.augmentation import normalise
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal

SPEC = CNN2Spec(channels=(3, 4), fc1=8, fc2=6)
RECIPE = Recipe(batch_size=32, epochs=2)
IDLE: Any = None  # workers that are asked for nothing


@pytest.fixture
def work(half: Half, data_dir: Path) -> Workload:
    """Seven steps of 32 images an epoch, two epochs."""
    return Workload(SPEC, RECIPE, half, "cpu", data_dir)


def epoch(number: int, train_seconds: float, val_accuracy: float = 0.5) -> Epoch:
    return Epoch(number, 7 * number, 1.0, 1.0, val_accuracy, 1e-3, 2 * train_seconds, train_seconds)


def test_a_round_by_hand(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 everything is twice as fast as in float32, and the notebook 1.6 times."""

    def results(workers: Any, function: Any, work: Workload, seeds: range | list[int]) -> list[Any]:
        factor = 2 if work.precision == "bf16" else 1
        if function is run_notebook:
            speedup = 1.6 if work.precision == "bf16" else 1
            return [[epoch(1, 4.0 / speedup, 0.5), epoch(2, 1.0 / speedup, 0.6)]]
        if function is matrix_product:
            return [8.0 * factor for _ in seeds]
        n_images, rate = work.recipe.steps_per_epoch(250) * work.recipe.batch_size, 100.0 * factor
        return [(epoch(1, n_images / rate, 0.8),) for _ in seeds]

    monkeypatch.setattr(loop, "results", results)
    two: Any = SimpleNamespace(n=2)
    work = dataclasses.replace(work, precision="bf16")
    values = Contenders(two, IDLE, Measurements()).measure_round(work, 0)
    assert values["naive_images_per_s"] == 2 * 250 / 5
    assert values["naive_bf16_images_per_s"] == pytest.approx(1.6 * 2 * 250 / 5)
    assert values["ours_images_per_s, one worker"] == pytest.approx(200)
    assert values["ours_images_per_s"] == pytest.approx(400)
    assert values["ratio_vs_naive"] == pytest.approx(400 / 160)
    assert values["worker_scaling"] == pytest.approx(2)
    assert values["fraction_of_limit"] == pytest.approx(400 * training_mflops(SPEC) / 32_000)
    assert values["default_images_per_s"] == pytest.approx(400)
    assert values["reference_images_per_s"] == pytest.approx(400 * 250 / 256)  # one batch of all 250 images
    assert values["default_bf16_speedup"] == pytest.approx(2)
    of_default = training_mflops(HAND_MADE_SPEC)
    assert values["default_fraction_of_limit"] == pytest.approx(400 * of_default / 32_000)
    assert values["default_fraction_of_limit, float32"] == pytest.approx(200 * of_default / 16_000)
    assert values["reference_fraction_of_limit"] == pytest.approx(
        values["reference_images_per_s"] * training_mflops(REFERENCE_SPEC) / 32_000
    )
    assert values["matrix product"] == 32.0
    assert values["validation accuracy, naive"] == 0.6
    assert values["validation accuracy, ours"] == pytest.approx(0.8)
    values = Contenders(two, IDLE, Measurements()).measure_round(dataclasses.replace(work, precision="float32"), 0)
    assert values["default_bf16_speedup"] == 1
    assert "naive_bf16_images_per_s" not in values


def test_both_loops_and_the_limit_are_measured(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HAND_MADE_SPEC", SPEC)
    monkeypatch.setattr(loop, "REFERENCE_SPEC", SPEC)
    measured = Measurements()
    with StopSignal() as stop, Workers(1, stop) as workers:
        Contenders(workers, workers, measured).measure_loop(work, n_rounds=2)
    spreads = {line["name"]: line["spread"] for line in measured.lines}
    assert {spread["n"] for spread in spreads.values()} == {2}
    naive, ours, alone = (
        spreads[name] for name in ("naive_images_per_s", "ours_images_per_s", "ours_images_per_s, one worker")
    )
    assert ours == alone
    assert spreads["worker_scaling"]["median"] == 1
    ratio = spreads["ratio_vs_naive"]
    assert ours["min"] / naive["max"] <= ratio["min"] <= ratio["max"] <= ours["max"] / naive["min"]


def test_evaluation_counts_in_the_time_of_a_fit_and_not_in_its_images_per_second(work: Workload) -> None:
    epochs = fit_once(work, 0, lambda news: None, lambda: False)
    assert 14 * 32 / sum(epoch.seconds for epoch in epochs) < images_per_s(work, epochs)


def test_the_time_to_the_goal_ends_with_the_epoch_that_reaches_it() -> None:
    epochs = (epoch(1, 3.0, 0.9), epoch(2, 2.0, loop.GOAL), epoch(3, 50.0, 0.99))
    assert seconds_to_goal(epochs) == 2 * 3.0 + 2 * 2.0
    with pytest.raises(UserError, match=r"90\.00% misses 93\.33%"):
        seconds_to_goal(epochs[:1])


def test_the_notebooks_time_to_the_goal_is_extrapolated_from_its_last_epoch(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "GOAL_IMAGES", (25, 5))

    def results(workers: Any, function: Any, work: Workload, seeds: list[int]) -> list[Any]:
        if function is fit_once:
            return [(epoch(1, 3.0, 0.99),)]
        assert (len(work.half.train), len(work.half.val), work.recipe.epochs) == (25, 5, 2)
        return [[epoch(1, 100.0, 0.5), epoch(2, 0.35, 0.6)]]

    monkeypatch.setattr(loop, "results", results)
    measured = Measurements()
    Contenders(IDLE, IDLE, measured).measure_goal(work, n_seeds=1)
    naive = 43 * 2 * 0.35 * 10
    assert [line["spread"]["median"] for line in measured.lines] == pytest.approx([naive, 6.0, 6.0 / naive])


def test_a_failed_measurement_is_an_error(work: Workload) -> None:
    diverging = dataclasses.replace(work, recipe=dataclasses.replace(RECIPE, learning_rate=1e30, schedule="constant"))
    with StopSignal() as stop, Workers(1, stop) as workers, pytest.raises(UserError, match="Diverged"):
        tasks.results(workers, fit_once, diverging, [0])


def test_the_notebook_sees_the_same_images(work: Workload) -> None:
    work = work.first(30, 20)
    train, val = notebook_data(work)
    for pairs, examples in ((train, work.half.train), (val, work.half.val)):
        images = torch.stack([pairs[i][0] for i in range(len(pairs))])  # type: ignore[arg-type]
        torch.testing.assert_close(images, normalise(examples.images), rtol=1e-4, atol=1e-5)
        assert [pairs[i][1] for i in range(len(images))] == examples.labels.tolist()
    assert (len(train), len(val)) == (30, 20)  # type: ignore[arg-type]


def test_the_notebook_learns(work: Workload) -> None:
    work = dataclasses.replace(work, recipe=Recipe(batch_size=32, epochs=12, learning_rate=1e-2))
    epochs = run_notebook(work, 0, lambda news: None, lambda: False)
    assert len(epochs) == 12
    assert epochs[-1].val_accuracy > 0.5  # of five classes
