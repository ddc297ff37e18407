"""Pairing: only where the layers but the classifier come from differs between the inits."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from fmnist_transfer import training
from fmnist_transfer.data import Half
from fmnist_transfer.model import CNN2Spec, fresh_network
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.seeding import Streams
from sweeps.arms import starting_network
from sweeps.cells import CellPlan, CellResult, train_cells
from sweeps.grid import Cell

SPEC = CNN2Spec((4, 8), fc1=16, fc2=8, fc_dropout=0.5)
RECIPE = Recipe(epochs=1, batch_size=16, flip=True)


@pytest.fixture(scope="module")
def registered() -> dict[str, torch.Tensor]:
    network = fresh_network(SPEC, Streams(99))
    network.train()(torch.randn(16, 1, 28, 28))
    return {name: tensor + 1 for name, tensor in network.state_dict().items()}  # no constant of a fresh network


def test_pretrained_copies_everything_but_the_classifier(registered: dict[str, torch.Tensor]) -> None:
    state = starting_network("pretrained", SPEC, registered, Streams(0)).state_dict()
    equal = {name for name in state if torch.equal(state[name], registered[name])}
    assert set(state) - equal == {"fc3.weight", "fc3.bias"}


def test_random_shares_nothing_but_the_classifier_with_pretrained(registered: dict[str, torch.Tensor]) -> None:
    pretrained, random = (
        starting_network(init, SPEC, registered, Streams(0)).state_dict() for init in ("pretrained", "random")
    )
    equal = {name for name in random if torch.equal(random[name], pretrained[name])}
    assert equal == {"fc3.weight", "fc3.bias"}


def test_a_ten_class_classifier_is_no_obstacle() -> None:
    ten = dict(fresh_network(CNN2Spec((4, 8), fc1=16, fc2=8, n_classes=10), Streams(1)).state_dict())
    network = starting_network("pretrained", SPEC, ten, Streams(0))
    assert network.fc3.weight.shape == (5, 8)
    assert torch.equal(network.fc1.weight, ten["fc1.weight"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The augmented batches that training sees."""
    batches: list[torch.Tensor] = []
    augment = training.augment

    def spy(*arguments: object) -> torch.Tensor:
        batches.append(augment(*arguments))
        return batches[-1]

    monkeypatch.setattr(training, "augment", spy)
    return batches


def train_cell(plan: CellPlan, cell: Cell) -> CellResult:
    (result,) = train_cells(plan, (cell,), lambda epoch: None, lambda: False)
    assert isinstance(result, CellResult)
    return result


def test_inits_see_the_same_augmented_batches(
    half: Half, registered: dict[str, torch.Tensor], seen: list[torch.Tensor]
) -> None:
    plan = CellPlan(half, SPEC, RECIPE, registered, "epochs", 0, "cpu")
    for cell in (Cell(20, "pretrained", 1), Cell(20, "random", 1), Cell(20, "random", 2)):
        train_cell(plan, cell)
    assert len(seen) == 9  # 50 images, batches of 16
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert not torch.equal(seen[0], seen[6])


def test_a_cell_does_not_depend_on_what_ran_before(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, registered, "epochs", 0, "cpu")
    cells = [Cell(20, "pretrained", 0), Cell(100, "random", 1)]
    one = {cell: train_cell(plan, cell) for cell in cells}
    other = {cell: train_cell(plan, cell) for cell in reversed(cells)}
    for cell in cells:
        assert one[cell].weights_digest == other[cell].weights_digest
        assert one[cell].result.to_dict() == other[cell].result.to_dict()


def test_budgets_differ_in_steps_and_not_in_evaluations(half: Half, registered: dict[str, torch.Tensor]) -> None:
    for budget, steps in (("epochs", 3), ("steps", 15)):
        plan = CellPlan(half, SPEC, RECIPE, registered, budget, 0, "cpu")
        result = train_cell(plan, Cell(20, "random", 0)).result
        assert [epoch.step for epoch in result.epochs] == [steps]


def test_cells_trained_together_score_as_if_alone(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, registered, "epochs", 0, "cpu")
    cells = tuple(Cell(40, init, replicate) for replicate in (0, 2) for init in ("pretrained", "random"))
    stacked = dataclasses.replace(plan, stack=True)
    epochs: list[int] = []
    together = train_cells(stacked, cells, epochs.append, lambda: False)
    assert epochs == list(range(RECIPE.epochs + 1))
    for cell, one in zip(cells, together, strict=True):
        assert isinstance(one, CellResult)
        alone = train_cell(plan, cell).result.to_dict()
        for group, scores in one.result.to_dict().items():
            for key, value in scores.items():
                tolerance = 0.02 if key.endswith("accuracy") else 2e-3
                expected = pytest.approx(alone[group][key], abs=tolerance, rel=1e-3)
                assert value == expected, (cell, group, key)
    assert len({one.weights_digest for one in together if isinstance(one, CellResult)}) == 4
