"""The benchmark's arithmetic, and what its contenders are given to do."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fmnist_transfer.benchmark import loop
from fmnist_transfer.benchmark.loop import Contenders, Fitted, Round, Workload, fit_fraction, fit_once, images_per_s
from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.benchmark.notebook_loop import NotebookEpoch, NotebookPlan
from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.network.cost import training_mflops
from fmnist_transfer.network.weights import State, weights_digest
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, History
from fmnist_transfer.training.stacked_network import Group
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal

SPEC = CNN2Spec(channels=(3, 4), fc1=8, fc2=6)
RECIPE = Recipe(batch_size=32, epochs=2)
IDLE: Any = None  # workers that are asked for nothing


@pytest.fixture
def work(half: Half) -> Workload:
    """Seven steps of 32 images an epoch, two epochs."""
    return Workload(SPEC, RECIPE, half.train, half.val, "cpu")


@pytest.fixture
def plan(half: Half, data_dir: Path) -> NotebookPlan:
    return NotebookPlan(data_dir, half.classes, 250, 50, device="cpu", n_threads=1, spec=SPEC, recipe=RECIPE)


def epoch(number: int, train_seconds: float, val_accuracy: float = 0.5) -> Epoch:
    return Epoch(number, 7 * number, 1.0, 1.0, val_accuracy, 1e-3, 2 * train_seconds, train_seconds)


def medians(measured: Measurements) -> dict[str, float]:
    return {line.name: line.spread.median for line in measured.lines}


def test_a_round_by_hand() -> None:
    notebook = [NotebookEpoch(1_000, 4.0, 1.0, 0.5), NotebookEpoch(1_000, 1.0, 9.0, 0.6)]
    fitted = {1: [Fitted(600.0, 10.0, 14.0, 0.7)], 2: [Fitted(500.0, 20.0, 24.0, 0.7), Fitted(300.0, 21.0, 30.0, 0.9)]}
    one = Round(notebook, fitted, gflops={1: 10.0, 2: 16.0})
    assert one.notebook_images_per_s == 2_000 / 5
    assert (one.images_per_s(1), one.images_per_s(2)) == (600.0, 800.0)
    assert (one.fits_per_hour(1), one.fits_per_hour(2)) == (3_600 / 4, 2 * 3_600 / 10)
    assert one.share_of_limit(2, SPEC) == pytest.approx(800 * training_mflops(SPEC) / 16_000)


def test_both_loops_and_the_limit_are_measured(work: Workload, plan: NotebookPlan) -> None:
    measured = Measurements()
    with StopSignal() as stop, Workers(1, stop) as workers:
        Contenders(workers, workers, measured).measure_loop(work, plan, n_rounds=2)
    found = medians(measured)
    assert {line.spread.n for line in measured.lines} == {2}
    one_worker, both = (found[f"ours_images_per_s{more}"] for more in (", one worker", ""))
    assert one_worker == both
    assert found["worker_scaling"] == 1
    ratio, fraction, product = (
        next(line.spread for line in measured.lines if line.name == name)
        for name in ("ratio_vs_naive", "fraction_of_limit", "matrix product")
    )
    naive, ours = (measured.lines[i].spread for i in (0, 1))
    assert ours.min / naive.max <= ratio.min <= ratio.max <= ours.max / naive.min
    gflops = training_mflops(SPEC) / 1e3
    assert gflops * ours.min / product.max <= fraction.min * (1 + 1e-9)
    assert fraction.max <= gflops * ours.max / product.min * (1 + 1e-9)


def test_evaluation_counts_in_the_time_of_a_fit_and_not_in_its_images_per_second(work: Workload) -> None:
    fitted = fit_once(work, 0, lambda news: None, lambda: False)
    assert 14 * 32 / (fitted.end - fitted.start) < fitted.images_per_s


def test_rates_leave_the_first_epoch_out(work: Workload) -> None:
    history = History((epoch(1, 100.0), epoch(2, 2.0)), 1, {})
    assert images_per_s(history, work, 1) == pytest.approx(7 * 32 / 2)
    assert images_per_s(history, work, 0) == pytest.approx(14 * 32 / 102)


def test_a_fraction_is_three_replicates_of_two_networks(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rate is the mean of six networks' shares; one that diverges is an error."""
    seen: list[Group] = []
    outcomes: list[History | Diverged] = [History((epoch(1, 100.0), epoch(2, k)), 1, {}) for k in (1.0, 2.0) * 3]

    def fit_stacked(groups: list[Group], *arguments: Any, **options: Any) -> list[tuple[History | Diverged, State]]:
        seen[:] = groups
        return [(outcome, {}) for outcome in outcomes]

    monkeypatch.setattr(loop, "fit_stacked", fit_stacked)
    assert fit_fraction(work, 0, lambda news: None, lambda: False) == pytest.approx(7 * 32 * (1 / 1 + 1 / 2) / 2)
    assert [len(group.networks) for group in seen] == [2, 2, 2]
    assert len({weights_digest(network.state_dict()) for group in seen for network in group.networks}) == 6
    assert len({group.streams for group in seen}) == 3
    outcomes[3] = Diverged("loss is nan")
    with pytest.raises(Diverged):
        fit_fraction(work, 0, lambda news: None, lambda: False)


def test_the_speedup_of_a_stack_is_that_of_its_images_per_second(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {loop.fit_alone: [100.0, 100.0, 100.0], loop.fit_fraction: [150.0, 250.0, 500.0]}
    monkeypatch.setattr(loop, "_results", lambda workers, function, work, seeds: [rates[function][seeds[0]]])
    measured = Measurements()
    Contenders(IDLE, IDLE, measured).measure_stack(work.train, work.val, "cpu")
    (line,) = measured.lines
    assert line.spread == (2.5, 1.5, 5.0, 3)


def test_the_time_to_the_goal_ends_with_the_epoch_that_reaches_it(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = (epoch(1, 3.0, 0.9), epoch(2, 2.0, loop.GOAL), epoch(3, 50.0, 0.99))
    monkeypatch.setattr(loop, "_fit", lambda *arguments: History(epochs, 3, {}))
    assert loop.fit_to_goal(work, 0, lambda news: None, lambda: False) == 2 * 3.0 + 2 * 2.0


def test_the_notebooks_time_to_the_goal_is_extrapolated_from_its_last_epoch(
    work: Workload, plan: NotebookPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(plan, n_train=25, n_val=10)
    notebook = [NotebookEpoch(25, 100.0, 100.0, 0.5), NotebookEpoch(25, 0.5, 0.2, 0.6)]
    monkeypatch.setattr(
        loop, "_results", lambda workers, function, *rest: [notebook if function is loop.run_notebook else 6.0]
    )
    measured = Measurements()
    Contenders(IDLE, IDLE, measured).measure_goal(work, plan)
    naive = 43 * (0.5 * 250 / 25 + 0.2 * 50 / 10)
    assert [line.spread.median for line in measured.lines] == pytest.approx([naive, 6.0, 6.0 / naive])


def test_a_goal_that_is_missed_is_an_error(work: Workload, plan: NotebookPlan) -> None:
    slow = dataclasses.replace(work, recipe=dataclasses.replace(RECIPE, learning_rate=1e-9))
    with (
        StopSignal() as stop,
        Workers(1, stop) as workers,
        pytest.raises(UserError, match=r"93\.33%"),
    ):
        Contenders(workers, workers, Measurements()).measure_goal(slow, plan)
