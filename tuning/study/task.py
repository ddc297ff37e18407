"""Train one trial in a worker. Workers import this module, so it imports neither mlflow nor optuna."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmnist_transfer.data.examples import Half, fraction, on_device
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit
from fmnist_transfer.training.recipe import Precision, Recipe


@dataclass(frozen=True)
class TrialPlan:
    """Data and settings of all trials of a study; sent to each worker once."""

    half: Half
    """The source half."""
    seed: int
    epochs: int
    device: str
    precision: Precision


@dataclass(frozen=True)
class TrialTask:
    """Number, network and recipe of one trial."""

    number: int
    spec: CNN2Spec
    recipe: Recipe


def train_trial(
    plan: TrialPlan, task: TrialTask, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> float | Diverged:
    """Train the trial, reporting each `Epoch`. Returns the final epoch's validation accuracy, or Diverged.

    All trials draw from the same random streams, so they differ only in their parameters.
    """
    streams, half = Streams(plan.seed), on_device(plan.half, plan.device)
    try:
        history = fit(
            fresh_network(task.spec, streams).to(plan.device),
            fraction(half.train, 100, streams),
            half.val,
            task.recipe,
            streams,
            precision=plan.precision,
            on_epoch=report,
            should_stop=should_stop,
        )
    except Diverged as error:
        return error
    return history.final.val_accuracy
