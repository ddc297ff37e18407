"""One trial, trained in a worker. Workers import this module, so it imports neither mlflow nor optuna."""

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
    """What every trial of a study shares; sent to each worker once."""

    half: Half
    """The source half."""
    seed: int
    epochs: int
    device: str
    precision: Precision


@dataclass(frozen=True)
class TrialTask:
    """What a worker needs to know of a trial."""

    number: int
    spec: CNN2Spec
    recipe: Recipe


def train_trial(
    plan: TrialPlan, task: TrialTask, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> float | Diverged:
    """Validation accuracy of the final epoch, or how the training diverged. Reports each `Epoch`.

    Every trial draws from the same streams: only its parameters differ.
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
