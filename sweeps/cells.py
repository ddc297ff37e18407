"""Training one cell: what all cells of a sweep share, and the worker's function.

Workers import this module, so it imports no mlflow.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from fmnist_transfer.data import Half, n_train, nested_order
from fmnist_transfer.model import CNN2Spec, weights_digest
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training import Result, fit_and_score
from sweeps.arms import starting_network
from sweeps.grid import Cell

if TYPE_CHECKING:
    from fmnist_transfer.registry import TrainedModel


@dataclass(frozen=True)
class CellPlan:
    """What every cell of a sweep shares; sent to each worker once."""

    half: Half
    """The target half."""
    spec: CNN2Spec
    """Of the target's network."""
    recipe: Recipe
    registered: dict[str, Tensor]
    """Weights and buffers of the registered network."""
    budget: Literal["epochs", "steps"]
    seed: int
    device: str


class CellResult(NamedTuple):
    result: Result
    """Without the weights, which nobody needs any more."""
    weights_digest: str


def plan_for(
    model: "TrainedModel", half: Half, *, epochs: int | None, budget: Literal["epochs", "steps"], seed: int, device: str
) -> CellPlan:
    """The registered network and recipe, on the target half; `epochs` replaces the recipe's."""
    recipe = dataclasses.replace(model.recipe, epochs=epochs or model.recipe.epochs)
    spec = dataclasses.replace(model.spec, n_classes=len(half.classes))
    return CellPlan(half, spec, recipe, model.state, budget, seed, device)


def train_cell(
    plan: CellPlan, cell: Cell, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> CellResult:
    """Train one cell, in a worker; reports 0 when it starts and the number of each epoch when it ends."""
    streams = Streams(plan.seed, cell.replicate, stage="target")
    network = starting_network(cell.init, plan.spec, plan.registered, streams).to(plan.device)
    order = nested_order(plan.half.train.labels, streams.generator("subset"))
    half = plan.half.to(plan.device)
    report(0)
    result = fit_and_score(
        network,
        half.train.take(order[: n_train(plan.half.train, cell.percent)].to(plan.device)),
        half,
        plan.recipe,
        streams,
        steps_per_epoch=plan.recipe.steps_per_epoch(len(order)) if plan.budget == "steps" else None,
        on_epoch=lambda epoch: report(epoch.epoch),
        should_stop=should_stop,
    )
    return CellResult(dataclasses.replace(result, final_state={}), weights_digest(result.final_state))
