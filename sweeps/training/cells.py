"""Training of one cell: the settings that cells share, and the function that workers run.

Workers import this module, so it imports no mlflow.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from fmnist_transfer.data.examples import Half, fraction, on_device
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import numerics
from fmnist_transfer.training.fit import Diverged
from fmnist_transfer.training.forecast import training_passes
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result, score
from fmnist_transfer.training.stacked import Group, fit_stacked
from sweeps.grid import TRAITS, TUNING_REPLICATE, Cell
from sweeps.training.inits import starting_network, train_arm

if TYPE_CHECKING:
    from fmnist_transfer.store.model_format import TrainedModel


@dataclass(frozen=True)
class CellPlan:
    """Settings shared by all cells of a sweep; sent to each worker once."""

    half: Half
    """The target half."""
    spec: CNN2Spec
    """Spec of the target's network."""
    recipe: Recipe
    sources: tuple[dict[str, Tensor], ...]
    """Weights and buffers of the registered network, or of one source network per replicate."""
    budget: Literal["epochs", "steps"]
    seed: int
    device: str
    precision: Precision = "float32"
    stack: bool = False
    """True if the cells of a fraction are trained as one computation."""

    def draw(self, streams: Streams) -> CNN2:
        return fresh_network(self.spec, streams)

    def source(self, cell: Cell) -> dict[str, Tensor]:
        """Weights and buffers that the cell's init copies from."""
        return self.sources[cell.replicate % TUNING_REPLICATE if len(self.sources) > 1 else 0]


class CellResult(NamedTuple):
    result: Result
    """`final_state` is empty: nothing needs the weights any more."""
    weights_digest: str
    numerics: dict[str, str]
    """Numerics of the process that trained the cell."""


def plan_for(
    model: "TrainedModel",
    half: Half,
    *,
    epochs: int | None,
    budget: Literal["epochs", "steps"],
    seed: int,
    device: str,
    precision: Precision,
    stack: bool,
) -> CellPlan:
    """Plan with the registered network and recipe on the target half; `epochs`, if given, replaces the recipe's."""
    recipe = dataclasses.replace(model.recipe, epochs=epochs or model.recipe.epochs)
    spec = dataclasses.replace(model.spec, n_classes=len(half.classes))
    return CellPlan(half, spec, recipe, (model.state,), budget, seed, device, precision, stack)


def passes(plan: CellPlan, cell: Cell, n_train: int) -> float:
    """Work of the cell in forward passes (`forecast.py`). Training the classifier alone needs features only once."""
    n_val = len(plan.half.val)
    of_all = plan.recipe.steps_per_epoch(len(plan.half.train)) if plan.budget == "steps" else None
    whole, once = training_passes(plan.recipe, n_train, n_val, of_all), 2 * n_train + 3 * n_val
    traits = TRAITS[cell.init]
    return traits.n_trainings * whole + traits.probes * once


def train_cells(
    plan: CellPlan, cells: tuple[Cell, ...], report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> list[CellResult | Diverged]:
    """Train a cell, or several of one fraction at once, in a worker; return the outcome of each.

    Reports 0 at the start, then each epoch's number at its end.
    """
    options = {
        "steps_per_epoch": plan.recipe.steps_per_epoch(len(plan.half.train)) if plan.budget == "steps" else None,
        "precision": plan.precision,
        "should_stop": should_stop,
    }
    if plan.stack:
        return _train_together(plan, cells, report, options)
    return [_train_alone(plan, cell, report, options) for cell in cells]


def _train_alone(
    plan: CellPlan, cell: Cell, report: Callable[[Any], None], options: dict[str, Any]
) -> CellResult | Diverged:
    half = on_device(plan.half, plan.device)
    streams = Streams(plan.seed, cell.replicate, stage="target")
    train = fraction(half.train, cell.percent, streams)
    report(0)
    try:
        result = train_arm(
            plan.draw,
            train,
            half,
            cell.recipe(plan.recipe),
            streams,
            init=cell.init,
            source=plan.source(cell),
            on_epoch=lambda epoch: report(epoch.epoch),
            **options,
        )
    except Diverged as error:
        return error
    return _without_weights(result)


def _train_together(
    plan: CellPlan, cells: tuple[Cell, ...], report: Callable[[Any], None], options: dict[str, Any]
) -> list[CellResult | Diverged]:
    """Train cells of one fraction, sorted by replicate, as one stack."""
    half = on_device(plan.half, plan.device)
    groups = []
    for replicate, of_replicate in itertools.groupby(cells, key=lambda cell: cell.replicate):
        streams = Streams(plan.seed, replicate, stage="target")
        networks = [
            starting_network(cell.init, plan.draw, plan.source(cell), streams).to(plan.device) for cell in of_replicate
        ]
        groups.append(Group(tuple(networks), fraction(half.train, cells[0].percent, streams), streams))
    report(0)
    trained = iter(fit_stacked(groups, half.val, plan.recipe, on_epoch=report, **options))
    results: list[CellResult | Diverged] = []
    for group in groups:
        for network, (history, final_state) in zip(group.networks, trained, strict=False):
            if isinstance(history, Diverged):
                results.append(history)
            else:
                initial = copy_state(network)  # the stack trained a copy of it
                network.load_state_dict(final_state)
                results.append(_without_weights(score(network, history, group.train, half, initial)))
    return results


def _without_weights(result: Result) -> CellResult:
    return CellResult(dataclasses.replace(result, final_state={}), weights_digest(result.final_state), numerics())
