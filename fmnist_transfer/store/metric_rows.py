"""Convert trainings to rows of metrics and params."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_transfer.network.cnn2 import CNN2Spec
    from fmnist_transfer.training.recipe import Recipe
    from fmnist_transfer.training.score import Epoch, Result

MetricRow = tuple[str, float, int]  # key, value, step


def settings_params(spec: "CNN2Spec", recipe: "Recipe") -> dict[str, Any]:
    """The whole spec and recipe as params: `spec.channels`, `recipe.learning_rate` ..."""
    params = {f"spec.{key}": value for key, value in spec.to_dict().items()}
    return params | {f"recipe.{key}": value for key, value in recipe.to_dict().items()}


def curve_rows(epochs: Sequence["Epoch"]) -> list[MetricRow]:
    """Epoch curves of a training; step = epoch."""
    return [
        row
        for e in epochs
        for row in (
            ("train/loss", e.train_loss, e.epoch),
            ("val/loss", e.val_loss, e.epoch),
            ("val/accuracy", e.val_accuracy, e.epoch),
            ("learning_rate", e.learning_rate, e.epoch),
            ("epoch_seconds", e.seconds, e.epoch),
        )
    ]


def result_rows(result: "Result") -> list[MetricRow]:
    """Epoch curves of a finished training, and its scores `final/*`, `best/*`, `test/*` and `cost/*` at step 0."""
    groups = result.to_dict() | {"cost": result.cost()}
    scores = [(f"{group}/{key}", value, 0) for group, values in groups.items() for key, value in values.items()]
    return [*curve_rows(result.epochs), *scores]
