"""Cells: pairing, budgets, own sources and recipes, and that nothing else decides what comes out."""

import dataclasses
import os
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from synthetic import SMALL_SPEC as SPEC

from fmnist_transfer.data.examples import Half, load_half
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.model_format import pack_weights
from fmnist_transfer.training import fit
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, Result
from sweeps.grid import Cell, RecipeChange
from sweeps.training.cells import CellPlan, CellResult, pretrain, train_cells

RECIPE = Recipe(epochs=1, batch_size=16, flip=True)


def train_cell(plan: CellPlan, cell: Cell) -> CellResult:
    (result,) = train_cells(plan, (cell,), lambda epoch: None, lambda: False)
    assert isinstance(result, CellResult)
    return result


@pytest.fixture
def plan(half: Half, registered: dict[str, torch.Tensor]) -> CellPlan:
    return CellPlan(half, SPEC, RECIPE, dict.fromkeys(range(3), pack_weights(registered)), "epochs", 0, "cpu")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The augmented batches that training sees."""
    batches: list[torch.Tensor] = []
    augment = fit.augment

    def spy(*arguments: object) -> torch.Tensor:
        batches.append(augment(*arguments))
        return batches[-1]

    monkeypatch.setattr(fit, "augment", spy)
    return batches


@pytest.mark.parametrize("budget", ["epochs", "steps"])
def test_a_source_network_is_that_of_a_search(budget: str, plan: CellPlan) -> None:
    """A search counts its re-trainings from 1."""
    plan = dataclasses.replace(plan, sources={}, budget=budget)  # type: ignore[arg-type]
    epochs: list[Epoch] = []
    (source,) = pretrain(plan, (1,), epochs.append, lambda: False)
    assert isinstance(source, Result)
    assert tuple(epochs) == source.epochs
    searched = train_on_half(SPEC, plan.half, RECIPE, Streams(0, 2), "cpu")
    assert weights_digest(source.final_state) == weights_digest(searched.final_state)
    assert source.to_dict() == searched.to_dict()


def test_forgetting_is_measured_on_the_source_with_its_classifier(plan: CellPlan, data_dir: Path) -> None:
    source, recipe = load_half(data_dir, (0, 1, 2, 3, 4)), Recipe(epochs=4, batch_size=16, learning_rate=1e-2)
    trained = train_on_half(SPEC, source, recipe, Streams(0), "cpu")
    plan = dataclasses.replace(
        plan, sources={0: pack_weights(trained.final_state)}, source_test=source.test, recipe=recipe
    )
    own = train_cell(plan, Cell(100, "pretrained", 0)).source_accuracies
    assert own["accuracy_before"] == trained.test.accuracy > 0.5
    assert own["accuracy_after"] < trained.test.accuracy
    assert train_cell(plan, Cell(100, "random", 0)).source_accuracies == {}


def test_selffer_trains_twice_and_not_from_the_registered(plan: CellPlan, registered: dict[str, torch.Tensor]) -> None:
    changed = pack_weights({name: tensor + 1 for name, tensor in registered.items()})
    other = dataclasses.replace(plan, sources={0: changed})
    cell = Cell(40, "selffer", 0)
    assert train_cell(plan, cell).weights_digest == train_cell(other, cell).weights_digest
    random = train_cell(plan, Cell(40, "random", 0))
    assert random.weights_digest != train_cell(plan, cell).weights_digest


def test_each_replicate_may_have_its_own_source(plan: CellPlan, registered: dict[str, torch.Tensor]) -> None:
    other = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in registered.items()}
    sources = {0: pack_weights(registered), 1: pack_weights(other)}
    one, two = plan, dataclasses.replace(plan, sources=sources)
    zero, first = Cell(40, "pretrained", 0), Cell(40, "pretrained", 1)
    assert train_cell(one, zero).weights_digest == train_cell(two, zero).weights_digest
    assert train_cell(one, first).weights_digest != train_cell(two, first).weights_digest


def test_sources_need_no_open_files_on_their_way_to_a_worker(
    plan: CellPlan, registered: dict[str, torch.Tensor]
) -> None:
    """Of 100 replicates, which as tensors would need 3,400."""
    plan.half.share_memory()
    many = dataclasses.replace(plan, sources={i: pack_weights(registered) for i in range(100)})
    before = len(os.listdir("/dev/fd"))
    assert len(ForkingPickler.dumps(many)) > 100 * len(many.sources[0])
    assert len(os.listdir("/dev/fd")) - before <= 12  # of the half's six tensors


def test_a_cell_trains_by_its_change(plan: CellPlan) -> None:
    change = RecipeChange(RECIPE.learning_rate / 10, 0.0)
    plain, tuned = (train_cell(plan, Cell(40, "pretrained", 0, one)).result for one in (None, change))
    assert tuned.distances["all"] < 0.5 * plain.distances["all"]


def test_inits_see_the_same_augmented_batches(plan: CellPlan, seen: list[torch.Tensor]) -> None:
    for cell in (Cell(20, "pretrained", 1), Cell(20, "random", 1), Cell(20, "random", 2)):
        train_cell(plan, cell)
    assert len(seen) == 9  # 50 images, batches of 16
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert not torch.equal(seen[0], seen[6])


def test_a_cell_does_not_depend_on_what_ran_before(plan: CellPlan) -> None:
    cells = [Cell(20, "pretrained", 0), Cell(100, "random", 1)]
    one = {cell: train_cell(plan, cell) for cell in cells}
    other = {cell: train_cell(plan, cell) for cell in reversed(cells)}
    for cell in cells:
        assert one[cell].weights_digest == other[cell].weights_digest
        assert one[cell].result.to_dict() == other[cell].result.to_dict()


def test_budgets_differ_in_steps_and_not_in_evaluations(plan: CellPlan) -> None:
    for budget, steps in (("epochs", 3), ("steps", 15)):
        result = train_cell(dataclasses.replace(plan, budget=budget), Cell(20, "random", 0)).result
        assert [epoch.step for epoch in result.epochs] == [steps]


def test_cells_trained_together_score_as_if_alone(plan: CellPlan) -> None:
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
