"""Train trials and re-trainings in a worker. Workers import this module, so it imports neither mlflow nor optuna."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_transfer.data.examples import Half, fraction, on_device
from fmnist_transfer.data.split import Split
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit, train_on_half
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result
from fmnist_transfer.workers.task import Report


@dataclass(frozen=True)
class Plan:
    """Source half and settings of all trainings; sent to each worker once."""

    half: Half
    split: Split
    seed: int
    device: str
    precision: Precision

    def facts(self) -> dict[str, Any]:
        """Settings besides configuration, replicate and device that determine a training's result."""
        data_sha256 = self.half.data_sha256
        return {"seed": self.seed, "split": str(self.split), "data_sha256": data_sha256, "precision": self.precision}


@dataclass(frozen=True)
class Candidate:
    """A configuration to train: a trial, or one of `--like` or `--reference`."""

    name: str
    spec: CNN2Spec
    recipe: Recipe
    trial: int | None = None
    search_score: float | None = None


class Retraining(NamedTuple):
    """A candidate with a fresh seed. The search used replicate 0, so fresh ones start at 1."""

    candidate: Candidate
    replicate: int


def train_trial(plan: Plan, task: Candidate, report: Report, should_stop: Callable[[], bool]) -> float | Diverged:
    """Train the trial, reporting each `Epoch`. Returns the final epoch's validation accuracy, or Diverged.

    All trials draw from the same random streams, so they differ only in their parameters.
    """
    streams, half = Streams(plan.seed), on_device(plan.half, plan.device)
    network, train = fresh_network(task.spec, streams).to(plan.device), fraction(half.train, 100, streams)
    options: dict[str, Any] = {"precision": plan.precision, "on_epoch": report, "should_stop": should_stop}
    try:
        return fit(network, train, half.val, task.recipe, streams, **options).final.val_accuracy
    except Diverged as error:
        return error


def retrain_one(plan: Plan, task: Retraining, report: Report, should_stop: Callable[[], bool]) -> Result:
    """Train the candidate on the whole source half and score it, reporting each `Epoch`."""
    spec, recipe, streams = task.candidate.spec, task.candidate.recipe, Streams(plan.seed, task.replicate)
    options: dict[str, Any] = {"precision": plan.precision, "on_epoch": report, "should_stop": should_stop}
    return train_on_half(spec, plan.half, recipe, streams, plan.device, **options)
