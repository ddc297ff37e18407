"""Names by which runs are found in the store: experiments, roles, scores, saved views, MLflow's tags."""

from enum import StrEnum

TUNING, TRANSFER, BENCHMARK = "fmnist-tuning", "fmnist-transfer", "fmnist-benchmark"
EXPERIMENTS = TUNING, TRANSFER, BENCHMARK


class Role(StrEnum):
    """Values of a run's tag `role`."""

    STUDY = "study"
    TRIAL = "trial"
    RETRAINED = "retrained"
    SWEEP = "sweep"
    SOURCE = "source"
    CELL = "cell"
    CURVE = "curve"
    BENCHMARK = "benchmark"


# Scores that other modules read by name, among those that `metric_rows.result_rows` logs.
TRAIN_LOSS, VAL_LOSS, VAL_ACCURACY = "final/train_loss", "final/val_loss", "final/val_accuracy"
BEST_VAL_LOSS, SCALED_VAL_LOSS = "best/val_loss", "final/val_scaled_loss"
TEST_ACCURACY, SECONDS = "test/accuracy", "cost/seconds"


class View(StrEnum):
    """A saved view of an experiment's runs, in the UI's menu `Views`."""

    TRIALS = "trials"
    RETRAINED = "retrained"
    SWEEPS = "sweeps"
    CELLS = "cells"
    MEANS = "means"


NOTE = "mlflow.note.content"  # tag of a run or an experiment: its description
KIND = "mlflow.experimentKind"
VIEW_TAG = "mlflow.sharedViewState."  # + name of a view: tag of an experiment
