"""Pairing: only where the layers but the classifier come from differs between the inits."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from fmnist_transfer import training
from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch
from sweeps.grid import INITS, Cell, Init, RecipeChange
from sweeps.training.cells import CellPlan, CellResult, train_cells
from sweeps.training.inits import fit_arm, probing_epochs, starting_network

SPEC = CNN2Spec((4, 8), fc1=16, fc2=8, fc_dropout=0.5)
DRAW = partial(fresh_network, SPEC)
RECIPE = Recipe(epochs=1, batch_size=16, flip=True)


@pytest.fixture(scope="module")
def registered() -> dict[str, torch.Tensor]:
    network = fresh_network(SPEC, Streams(99))
    network.train()(torch.randn(16, 1, 28, 28))
    return {name: tensor + 1 for name, tensor in network.state_dict().items()}  # no constant of a fresh network


def test_pretrained_copies_everything_but_the_classifier(registered: dict[str, torch.Tensor]) -> None:
    state = starting_network("pretrained", DRAW, registered, Streams(0)).state_dict()
    equal = {name for name in state if torch.equal(state[name], registered[name])}
    assert set(state) - equal == {"fc3.weight", "fc3.bias"}


def test_random_shares_nothing_but_the_classifier_with_pretrained(registered: dict[str, torch.Tensor]) -> None:
    pretrained, random = (
        starting_network(init, DRAW, registered, Streams(0)).state_dict() for init in ("pretrained", "random")
    )
    equal = {name for name in random if torch.equal(random[name], pretrained[name])}
    assert equal == {"fc3.weight", "fc3.bias"}


def test_a_ten_class_classifier_is_no_obstacle() -> None:
    ten = dict(fresh_network(CNN2Spec((4, 8), fc1=16, fc2=8, n_classes=10), Streams(1)).state_dict())
    network = starting_network("pretrained", DRAW, ten, Streams(0))
    assert network.fc3.weight.shape == (5, 8)
    assert torch.equal(network.fc1.weight, ten["fc1.weight"])


def test_frozen_and_lp_ft_start_as_pretrained(registered: dict[str, torch.Tensor]) -> None:
    digests = {
        init: weights_digest(starting_network(init, DRAW, registered, Streams(0)).state_dict())
        for init in ("pretrained", "frozen", "lp-ft", "selffer")
    }
    assert len(set(digests.values())) == 1  # selffer: of what `train_before` gave


def test_shrink_perturb_is_the_sum_of_its_parts(registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("shrink-perturb", DRAW, registered, Streams(0))
    fresh = fresh_network(SPEC, Streams(0)).state_dict()
    for name, parameter in network.named_parameters():
        classifier = name.startswith("fc3.")
        expected = fresh[name] if classifier else 0.4 * registered[name] + 0.1 * fresh[name]
        assert torch.equal(parameter, expected), name
    assert all(torch.equal(buffer, registered[name]) for name, buffer in network.named_buffers())


def test_matched_shares_mean_and_deviation_and_nothing_else(registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("matched", DRAW, registered, Streams(0))
    again = starting_network("matched", DRAW, registered, Streams(0))
    assert weights_digest(network.state_dict()) == weights_digest(again.state_dict())
    for name, parameter in network.named_parameters():
        if not name.startswith("fc3."):
            one, other = parameter.detach(), registered[name]
            assert float(one.mean()) == pytest.approx(float(other.mean()), abs=1e-5)
            assert float(one.std(correction=0)) == pytest.approx(float(other.std(correction=0)), abs=1e-5)
            if other.std() > 0.01:
                assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.9
    assert all(torch.equal(buffer, registered[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize("init", INITS)
def test_every_init_draws_the_same_classifier(init: Init, registered: dict[str, torch.Tensor]) -> None:
    network = starting_network(init, DRAW, registered, Streams(5))
    fresh = fresh_network(SPEC, Streams(5))
    assert torch.equal(network.fc3.weight, fresh.fc3.weight)
    assert torch.equal(network.fc3.bias, fresh.fc3.bias)


def test_what_moves(half: Half, registered: dict[str, torch.Tensor]) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=5)
    for init in INITS:
        network = starting_network(init, DRAW, registered, Streams(0))
        start = copy_state(network)
        history = fit_arm(network, half.train, half.val, recipe, Streams(0), init=init)
        assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3, 4, 5]
        assert [epoch.step for epoch in history.epochs] == [15, 30, 45, 60, 75]
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, start[name])}
        everything = {name for name, _ in network.named_parameters()}
        assert moved == ({"fc3.weight", "fc3.bias"} if init == "frozen" else everything), init


def test_lp_ft_trains_the_classifier_alone_for_a_fifth(half: Half, registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("lp-ft", DRAW, registered, Streams(0))
    start, moved = copy_state(network), []

    def look(epoch: Epoch) -> None:
        moved.append({name for name, p in network.named_parameters() if not torch.equal(p, start[name])})

    recipe = dataclasses.replace(RECIPE, epochs=10)
    fit_arm(network, half.train, half.val, recipe, Streams(0), init="lp-ft", on_epoch=look)
    assert moved[:2] == [{"fc3.weight", "fc3.bias"}] * 2
    assert all(len(names) == len(list(network.parameters())) for names in moved[2:])
    with pytest.raises(UsageError, match="two epochs or more"):
        probing_epochs(1)


def test_selffer_trains_twice_and_not_from_the_registered(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, (registered,), "epochs", 0, "cpu")
    other = dataclasses.replace(plan, sources=({name: tensor + 1 for name, tensor in registered.items()},))
    cell = Cell(40, "selffer", 0)
    assert train_cell(plan, cell).weights_digest == train_cell(other, cell).weights_digest
    random = train_cell(plan, Cell(40, "random", 0))
    assert random.weights_digest != train_cell(plan, cell).weights_digest


def test_each_replicate_may_have_its_own_source(half: Half, registered: dict[str, torch.Tensor]) -> None:
    other = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in registered.items()}
    one, two = (
        CellPlan(half, SPEC, RECIPE, sources, "epochs", 0, "cpu") for sources in ((registered,), (registered, other))
    )
    zero, first = Cell(40, "pretrained", 0), Cell(40, "pretrained", 1)
    assert train_cell(one, zero).weights_digest == train_cell(two, zero).weights_digest
    assert train_cell(one, first).weights_digest != train_cell(two, first).weights_digest


def test_a_cell_trains_by_its_setting(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, (registered,), "epochs", 0, "cpu")
    setting = RecipeChange(RECIPE.learning_rate / 10, 0.1, 0.0)
    plain, tuned = (train_cell(plan, Cell(40, "pretrained", 0, one)).result for one in (None, setting))
    assert tuned.distances["fc3"] < 0.5 * plain.distances["fc3"]
    assert tuned.distances["fc1"] < 0.1 * plain.distances["fc1"]


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
    plan = CellPlan(half, SPEC, RECIPE, (registered,), "epochs", 0, "cpu")
    for cell in (Cell(20, "pretrained", 1), Cell(20, "random", 1), Cell(20, "random", 2)):
        train_cell(plan, cell)
    assert len(seen) == 9  # 50 images, batches of 16
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert not torch.equal(seen[0], seen[6])


def test_a_cell_does_not_depend_on_what_ran_before(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, (registered,), "epochs", 0, "cpu")
    cells = [Cell(20, "pretrained", 0), Cell(100, "random", 1)]
    one = {cell: train_cell(plan, cell) for cell in cells}
    other = {cell: train_cell(plan, cell) for cell in reversed(cells)}
    for cell in cells:
        assert one[cell].weights_digest == other[cell].weights_digest
        assert one[cell].result.to_dict() == other[cell].result.to_dict()


def test_budgets_differ_in_steps_and_not_in_evaluations(half: Half, registered: dict[str, torch.Tensor]) -> None:
    for budget, steps in (("epochs", 3), ("steps", 15)):
        plan = CellPlan(half, SPEC, RECIPE, (registered,), budget, 0, "cpu")
        result = train_cell(plan, Cell(20, "random", 0)).result
        assert [epoch.step for epoch in result.epochs] == [steps]


def test_cells_trained_together_score_as_if_alone(half: Half, registered: dict[str, torch.Tensor]) -> None:
    plan = CellPlan(half, SPEC, RECIPE, (registered,), "epochs", 0, "cpu")
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
