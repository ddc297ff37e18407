"""Train cells and source networks in a worker. Workers import this module, so it imports no mlflow."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from fmnist_transfer.data.examples import Half, fraction, on_device
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.network.weights import State, copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import numerics
from fmnist_transfer.training.fit import Diverged, train_on_half
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result, evaluation_points, score
from fmnist_transfer.training.stacked import Group, fit_stacked
from fmnist_transfer.workers.task import Report
from sweeps.grid import Cell, traits
from sweeps.training.inits import starting_network, train_arm

EVERY = -1  # in place of a replicate: all of them


@dataclass(frozen=True)
class CellPlan:
    """Settings shared by all trainings of a sweep; sent to each worker once."""

    half: Half  # the target half; for source networks the source half
    spec: CNN2Spec
    recipe: Recipe
    sources: Mapping[int, State]  # weights by replicate; of the registered network: `{EVERY: state}`
    budget: Literal["epochs", "steps"]
    seed: int
    device: str
    precision: Precision = "float32"
    stack: bool = False  # train the cells of a fraction as one computation

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of a nominal epoch under the steps budget; None: one pass over the cell's images."""
        return self.recipe.steps_per_epoch(len(self.half.train)) if self.budget == "steps" else None

    def source(self, cell: Cell) -> State:
        """Weights and buffers that the cell's init copies from."""
        return self.sources[EVERY if EVERY in self.sources else cell.replicate]


class CellResult(NamedTuple):
    result: Result  # without `final_state`: nothing needs the weights any more
    weights_digest: str
    numerics: dict[str, str]  # of the process that trained the cell


def passes(plan: CellPlan, cell: Cell, n_train: int) -> float:
    """Work of the cell in forward passes of an image, three for an image of a training step."""
    recipe, n_val, own = plan.recipe, len(plan.half.val), traits(cell.init)
    steps = recipe.epochs * (plan.steps_per_epoch or recipe.steps_per_epoch(n_train))
    whole = 3 * steps * min(recipe.batch_size, n_train) + (len(evaluation_points(recipe.epochs)) + 2) * n_val + n_train
    # A classifier alone needs features only once, and is then fitted in about the time of two passes (measured).
    return own.n_trainings * whole + own.probes * (4 * n_train + 3 * n_val)


def pretrain(
    plan: CellPlan, replicates: tuple[int, ...], report: Report, should_stop: Callable[[], bool]
) -> list[Result | Diverged]:
    """Train the source network of a replicate on the whole half, or with `stack` those of several.

    They are what a search with this seed gets for its re-trainings, which count from 1. Reports each `Epoch`, or its
    number.
    """
    streams = [Streams(plan.seed, replicate + 1) for replicate in replicates]
    options: dict[str, Any] = {"precision": plan.precision, "on_epoch": report, "should_stop": should_stop}
    if not plan.stack:
        return [train_on_half(plan.spec, plan.half, plan.recipe, own, plan.device, **options) for own in streams]
    half = on_device(plan.half, plan.device)
    return _fit_and_score_stacked(
        [
            Group((fresh_network(plan.spec, own).to(plan.device),), fraction(half.train, 100, own), own)
            for own in streams
        ],
        half,
        plan.recipe,
        options,
    )


def train_cells(
    plan: CellPlan, cells: tuple[Cell, ...], report: Report, should_stop: Callable[[], bool]
) -> list[CellResult | Diverged]:
    """Train a cell, or with `stack` several of one fraction. Reports 0 at the start, then each epoch's number."""
    half = on_device(plan.half, plan.device)
    options: dict[str, Any] = {"precision": plan.precision, "should_stop": should_stop}
    options["steps_per_epoch"] = plan.steps_per_epoch
    if plan.stack:
        return _train_together(plan, cells, half, report, options)
    (cell,) = cells
    streams = Streams(plan.seed, cell.replicate, stage="target")
    train = fraction(half.train, cell.percent, streams)
    recipe = cell.change.applied_to(plan.recipe) if cell.change else plan.recipe
    options |= {"init": cell.init, "source": plan.source(cell), "on_epoch": lambda epoch: report(epoch.epoch)}
    report(0)
    try:
        draw = partial(fresh_network, plan.spec)
        return [_without_weights(train_arm(draw, train, half, recipe, streams, **options))]
    except Diverged as error:
        return [error]


def _train_together(
    plan: CellPlan, cells: tuple[Cell, ...], half: Half, report: Report, options: dict[str, Any]
) -> list[CellResult | Diverged]:
    """Train cells of one fraction, sorted by replicate."""
    draw, groups = partial(fresh_network, plan.spec), []
    for replicate, of_replicate in itertools.groupby(cells, key=lambda cell: cell.replicate):
        streams = Streams(plan.seed, replicate, stage="target")
        networks = [starting_network(cell.init, draw, plan.source(cell), streams) for cell in of_replicate]
        train = fraction(half.train, cells[0].percent, streams)
        groups.append(Group(tuple(network.to(plan.device) for network in networks), train, streams))
    report(0)
    results = _fit_and_score_stacked(groups, half, plan.recipe, options | {"on_epoch": report})
    return [result if isinstance(result, Diverged) else _without_weights(result) for result in results]


def _fit_and_score_stacked(
    groups: Sequence[Group], half: Half, recipe: Recipe, options: Mapping[str, Any]
) -> list[Result | Diverged]:
    """Run `fit_stacked`, then `score` for each network, group by group."""
    trained = fit_stacked(groups, half.val, recipe, **options)
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


def _without_weights(result: Result) -> CellResult:
    return CellResult(dataclasses.replace(result, final_state={}), weights_digest(result.final_state), numerics())
