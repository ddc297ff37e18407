"""Candidates, plan and results of re-trainings. Workers import this module, so it imports no mlflow."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import Split
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result


@dataclass(frozen=True)
class Candidate:
    """A configuration to train again; `trial` and `search_score` are None without a search."""

    spec: CNN2Spec
    recipe: Recipe
    trial: int | None = None
    search_score: float | None = None
    origin: str = "reference"
    """Name of a configuration without a search."""

    @property
    def name(self) -> str:
        return self.origin if self.trial is None else f"trial {self.trial:03d}"


class Retraining(NamedTuple):
    """One task: a candidate with a fresh seed. The search used replicate 0, so fresh ones start at 1."""

    candidate: Candidate
    replicate: int

    @property
    def name(self) -> str:
        return f"{self.candidate.name} seed {self.replicate}"


@dataclass(frozen=True)
class RetrainingPlan:
    """Data and settings of all re-trainings; sent to each worker once."""

    half: Half
    """The source half."""
    split: Split
    seed: int
    n_seeds: int
    """Trainings per candidate, replicates 1 ... n_seeds."""
    device: str
    precision: Precision

    def facts(self) -> dict[str, Any]:
        """Settings besides candidate, replicate and device that determine a re-training's result."""
        return {
            "seed": self.seed,
            "split": str(self.split),
            "data_sha256": self.half.data_sha256,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Retrained:
    """A candidate's scores over its fresh seeds; run, test accuracy and seconds are those of the first."""

    candidate: Candidate
    val_accuracies: tuple[float, ...]
    run_id: str
    test_accuracy: float
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.val_accuracies)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.val_accuracies) if len(self.val_accuracies) > 1 else None


def retrain_one(
    plan: RetrainingPlan, task: Retraining, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Result:
    """Train the candidate on the whole source half, in a worker."""
    return train_on_half(
        task.candidate.spec,
        plan.half,
        task.candidate.recipe,
        Streams(plan.seed, task.replicate),
        plan.device,
        precision=plan.precision,
        on_epoch=report,
        should_stop=should_stop,
    )
