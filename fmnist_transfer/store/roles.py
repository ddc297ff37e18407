"""Names by which runs are found in the store, and trainings as rows of metrics and params."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_transfer.network.cnn2 import CNN2Spec
    from fmnist_transfer.training.recipe import Recipe
    from fmnist_transfer.training.score import Epoch, Result

TUNING, TRANSFER, BENCHMARK = EXPERIMENTS = "fmnist-tuning", "fmnist-transfer", "fmnist-benchmark"
IMAGE_SCORES_FILE = "image_scores.npz"  # artifact of a cell: `score.pack_image_scores`
# Scores that other modules read by name, among those that `result_rows` returns.
TRAIN_LOSS, VAL_LOSS, VAL_ACCURACY = "final/train_loss", "final/val_loss", "final/val_accuracy"
BEST_VAL_LOSS, SCALED_VAL_LOSS = "best/val_loss", "final/val_scaled_loss"
TEST_ACCURACY, SECONDS = "test/accuracy", "cost/seconds"
NOTE, KIND = "mlflow.note.content", "mlflow.experimentKind"  # tags; the first is the description
VIEW_TAG = "mlflow.sharedViewState."  # + name of a view: tag of an experiment
TAG_LENGTH = 5_000  # characters, the limit of MLflow's tags
MetricRow = tuple[str, float, int]  # key, value, step
# Both have their names in lower case as values: a run's tag `role`, and the keys of the experiments' saved views.
Role = StrEnum("Role", "STUDY TRIAL RETRAINED SWEEP SOURCE CELL CURVE BENCHMARK")
View = StrEnum("View", "TRIALS RETRAINED SWEEPS CELLS MEANS")


def settings_params(spec: "CNN2Spec", recipe: "Recipe") -> dict[str, Any]:
    """The whole spec and recipe as params: `spec.channels`, `recipe.learning_rate` ..."""
    params = {f"spec.{key}": value for key, value in spec.to_dict().items()}
    return params | {f"recipe.{key}": value for key, value in recipe.to_dict().items()}


def curve_rows(epochs: Sequence["Epoch"]) -> list[MetricRow]:
    """Curves over evaluated epochs; step = epoch. `epoch_seconds` counts from the previous evaluation."""
    fields = {"train/loss": "train_loss", "val/loss": "val_loss", "val/accuracy": "val_accuracy"}
    fields |= {"learning_rate": "learning_rate", "epoch_seconds": "seconds"}
    return [(key, getattr(epoch, field), epoch.epoch) for epoch in epochs for key, field in fields.items()]


def result_rows(result: "Result") -> list[MetricRow]:
    """Epoch curves of a finished training, and its scores `final/*` ... `cost/*` at step 0."""
    groups = result.to_dict() | {"cost": result.cost()}
    scores = [(f"{group}/{key}", value, 0) for group, values in groups.items() for key, value in values.items()]
    return [*curve_rows(result.epochs), *scores]
