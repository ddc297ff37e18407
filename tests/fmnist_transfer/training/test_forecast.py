"""How much work a training is, by hand; and that measuring it leaves no trace."""

import dataclasses

import pytest
import torch

from fmnist_transfer.data.examples import Examples, Half, fraction
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training import forecast
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.forecast import seconds_per_pass, training_passes
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, History
from sweeps.grid import INITS, Cell
from sweeps.training.cells import CellPlan, passes, train_cells

SPEC = CNN2Spec(channels=(3, 4), fc1=8, fc2=6, fc_dropout=0.5)
RECIPE = Recipe(epochs=5, batch_size=32, shift=2)


def test_passes_of_a_training_by_hand() -> None:
    # 250 // 32 = 7 steps an epoch, 5 epochs, 3 passes for each image of a step; 5 + 2 times 50 scored, and 250
    assert training_passes(RECIPE, 250, 50) == 3 * 7 * 5 * 32 + 7 * 50 + 250
    assert training_passes(RECIPE, 20, 50) == 3 * 1 * 5 * 20 + 7 * 50 + 20  # fewer images than a batch
    assert training_passes(RECIPE, 100, 50, steps_per_epoch=7) == 3 * 7 * 5 * 32 + 7 * 50 + 100


def _plan(half: Half, budget: str = "epochs") -> CellPlan:
    source = train_on_half(SPEC, half, dataclasses.replace(RECIPE, epochs=1), Streams(0), "cpu").final_state
    return CellPlan(half, SPEC, RECIPE, (source,), budget, 0, "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("init", INITS)
def test_passes_of_a_cell(init: str, half: Half) -> None:
    cell = Cell(40, init, 0)  # type: ignore[arg-type]
    n_train = len(fraction(half.train, 40, Streams(0)))
    assert (n_train, len(half.train), len(half.val)) == (100, 250, 50)
    for budget, steps in (("epochs", 3), ("steps", 7)):
        whole = 3 * steps * 5 * 32 + 7 * 50 + 100
        once = 2 * 100 + 3 * 50
        expected = {"selffer": 2 * whole, "frozen": once, "lp-ft": 0.8 * whole + once}.get(init, whole)
        assert passes(_plan(half, budget), cell, n_train) == pytest.approx(expected)


def test_seconds_are_measured_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By four steps of three passes for each image, of one step that warms up nothing counts."""
    trained: list[tuple[int, int | None]] = []

    def fit(network: CNN2, train: Examples, *arguments: object, **options: int) -> History:
        trained.append((len(train), options.get("steps_per_epoch")))
        return History((Epoch(1, 4, 1.0, 1.0, 0.5, 1e-3, 99.0, train_seconds=7.68),), 1, {})

    monkeypatch.setattr(forecast, "fit", fit)
    assert seconds_per_pass(SPEC, RECIPE, "cpu") == pytest.approx(0.02)  # 7.68 s / (4 steps * 32 images * 3 passes)
    assert trained == [(32, 1), (128, None)]
    assert seconds_per_pass(SPEC, RECIPE, "cuda") is None
    assert seconds_per_pass(SPEC, RECIPE, "mps") is None


def test_a_recipe_that_diverges_is_no_error() -> None:
    diverging = dataclasses.replace(RECIPE, optimizer="sgd", schedule="constant", learning_rate=1e30)
    assert seconds_per_pass(SPEC, diverging, "cpu") is None


def test_measuring_changes_nothing_that_follows(half: Half) -> None:
    plan, cell = _plan(half), Cell(40, "pretrained", 1)

    def digest() -> str:
        (result,) = train_cells(plan, (cell,), lambda news: None, lambda: False)
        return result.weights_digest  # type: ignore[union-attr]

    before, state, source = digest(), torch.get_rng_state(), weights_digest(plan.sources[0])
    assert seconds_per_pass(SPEC, RECIPE, "cpu") is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert (digest(), weights_digest(plan.sources[0])) == (before, source)
