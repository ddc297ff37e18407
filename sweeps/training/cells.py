"""Train cells and source networks in a worker. Workers import this module, so it imports no mlflow."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import safetensors.torch

from fmnist_transfer.data.examples import Examples, Half, fraction, on_device
from fmnist_transfer.network.cnn2 import CLASSIFIER, CNN2, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import State, copy_state, weights_digest
from fmnist_transfer.seeding import Stage, Streams
from fmnist_transfer.training.device import numerics
from fmnist_transfer.training.evaluation import evaluate
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result, score
from fmnist_transfer.training.stacked import Group, fit_stacked
from fmnist_transfer.workers.task import Report
from sweeps.grid import Cell
from sweeps.training.inits import starting_network, train_arm, trunk_of


@dataclass(frozen=True)
class CellPlan:
    """Settings shared by all trainings of a sweep; sent to each worker once."""

    half: Half  # the target half; for source networks the source half
    spec: CNN2Spec
    recipe: Recipe
    # replicate -> weights and buffers that its inits copy from, as `model_format.pack_weights` writes them: each tensor
    # that is sent to a worker would need an open file
    sources: Mapping[int, bytes]
    budget: Literal["epochs", "steps"]
    seed: int
    device: str
    precision: Precision = "float32"
    stack: bool = False  # train the cells of a fraction as one computation
    source_test: Examples | None = None  # test images of the source half, to measure forgetting

    def source(self, replicate: int) -> State:
        return safetensors.torch.load(self.sources[replicate]) if replicate in self.sources else {}


class CellResult(NamedTuple):
    result: Result  # without `final_state`: nothing needs the weights any more
    weights_digest: str
    numerics: dict[str, str]  # of the process that trained the cell
    source_accuracies: dict[str, float]  # of a pretrained cell


def pretrain(
    plan: CellPlan, replicates: tuple[int, ...], report: Report, should_stop: Callable[[], bool]
) -> list[Result | Diverged]:
    """Train a replicate's source network on the whole half, or with `stack` several, and report as `fit` does."""
    # They are the networks that a search with this seed trains again, counting from 1.
    cells = tuple(Cell(100, "random", replicate + 1) for replicate in replicates)
    return _train(plan, cells, "source", report, should_stop)


def train_cells(
    plan: CellPlan, cells: tuple[Cell, ...], report: Report, should_stop: Callable[[], bool]
) -> list[CellResult | Diverged]:
    """Train a cell, or with `stack` several of one fraction. Reports 0 at the start, then as `fit` does."""
    report(0)
    results = list[CellResult | Diverged]()
    for cell, trained in zip(cells, _train(plan, cells, "target", report, should_stop), strict=True):
        if isinstance(trained, Result):
            forgetting = source_accuracies(plan, cell, trained.final_state) if cell.init == "pretrained" else {}
            digest, result = weights_digest(trained.final_state), dataclasses.replace(trained, final_state={})
            results.append(CellResult(result, digest, numerics(), forgetting))
        else:
            results.append(trained)
    return results


def source_accuracies(plan: CellPlan, cell: Cell, final_state: State) -> dict[str, float]:
    """Measure forgetting: test accuracies on the source half, by the source's classifier, before and after the cell."""
    if plan.source_test is None:
        return {}
    source, test = plan.source(cell.replicate), plan.source_test.to(plan.device)
    network = CNN2(dataclasses.replace(plan.spec, n_classes=len(source[f"{CLASSIFIER}.bias"]))).to(plan.device)
    network.load_state_dict(source)
    before = evaluate(network, test).accuracy
    network.load_state_dict({**source, **trunk_of(final_state)})  # batch norm keeps the target's statistics
    return {"accuracy_before": before, "accuracy_after": evaluate(network, test).accuracy}


def _train(
    plan: CellPlan, cells: tuple[Cell, ...], stage: Stage, report: Report, should_stop: Callable[[], bool]
) -> list[Result | Diverged]:
    """Train a cell, or with `stack` several of one fraction. Raises Diverged for a single cell."""
    half = on_device(plan.half, plan.device)
    options: dict[str, Any] = {"precision": plan.precision, "on_epoch": report, "should_stop": should_stop}
    if plan.budget == "steps":
        options["steps_per_epoch"] = plan.recipe.steps_per_epoch(len(half.train))
    if plan.stack:
        return _train_together(plan, cells, stage, half, options)
    (cell,) = cells
    streams = Streams(plan.seed, cell.replicate, stage)
    train = fraction(half.train, cell.percent, streams)
    recipe = dataclasses.replace(plan.recipe, **cell.setting)
    options |= {"init": cell.init, "source": plan.source(cell.replicate)}
    return [train_arm(partial(fresh_network, plan.spec), train, half, recipe, streams, **options)]


def _train_together(
    plan: CellPlan, cells: tuple[Cell, ...], stage: Stage, half: Half, options: Mapping[str, Any]
) -> list[Result | Diverged]:
    """Train cells of one fraction, sorted by replicate, then score each."""
    groups, draw = [], partial(fresh_network, plan.spec)
    for replicate, of_replicate in itertools.groupby(cells, key=lambda cell: cell.replicate):
        streams, source = Streams(plan.seed, replicate, stage), plan.source(replicate)
        networks = (starting_network(cell.init, draw, source, streams).to(plan.device) for cell in of_replicate)
        groups.append(Group(tuple(networks), fraction(half.train, cells[0].percent, streams), streams))
    trained = fit_stacked(groups, half.val, plan.recipe, **options)
    started = [(network, group.train) for group in groups for network in group.networks]
    results: list[Result | Diverged] = []
    for (network, train), (history, final_state) in zip(started, trained, strict=True):
        if isinstance(history, Diverged):
            results.append(history)
        else:
            initial = copy_state(network)  # the stack trained a copy of it
            network.load_state_dict(final_state)
            results.append(score(network, history, train, half, initial))
    return results
