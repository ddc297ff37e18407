"""Training of one source network per replicate, so that intervals also cover differences between pretrainings.

The registered configuration is trained on the source half with fresh draws. Workers import this module, so it imports
no mlflow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmnist_transfer.data.examples import Half
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result


@dataclass(frozen=True)
class PretrainingPlan:
    """Settings shared by all source networks of a sweep."""

    half: Half
    """The source half."""
    spec: CNN2Spec
    recipe: Recipe
    seed: int
    device: str
    precision: Precision


def pretrain(
    plan: PretrainingPlan, replicate: int, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Result:
    """Train the source network of one replicate, in a worker. Reports each `Epoch`."""
    return train_on_half(
        plan.spec,
        plan.half,
        plan.recipe,
        Streams(plan.seed, replicate, stage="pretraining"),
        plan.device,
        precision=plan.precision,
        on_epoch=report,
        should_stop=should_stop,
    )
