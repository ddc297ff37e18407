"""The arithmetic of a sweep's wall time."""

import optuna
import pytest

from fmnist_transfer.benchmark.commands import SweepTimes, predicted_shares
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE
from tuning.space import first_trial, suggest


def test_the_default_network_is_that_of_the_first_trial() -> None:
    trial = optuna.trial.FixedTrial(first_trial(4.0))
    assert suggest(trial, epochs=10, max_mflops=4.0) == (HAND_MADE_SPEC, HAND_MADE_RECIPE)


def times(cells: list[dict[str, float]], stage_seconds: float, wall: float) -> SweepTimes:
    result = {
        "cells": [{"n_train": cell.pop("n_train"), "cost": cell} for cell in cells],
        "stages": {"cells": stage_seconds},
        "seconds": wall - 1,
        "first_step_seconds": 4.0,
    }
    return SweepTimes(wall, result)


def test_times_of_a_sweep() -> None:
    cells = [{"n_train": 100, "seconds": seconds, "train_seconds": 7.0} for seconds in (10.0, 12.0)]
    one = times(cells, 22.0, 25.0)
    assert one.first_step_seconds == 4.0 + 1.0  # a second passes before the command counts
    assert (one.mean_cell_seconds("seconds"), one.mean_cell_seconds("train_seconds")) == (11.0, 7.0)


def test_predicted_shares_of_the_default_sweep() -> None:
    small = {"n_train": 250, "seconds": 0.25 + 0.5, "train_seconds": 0.25, "val_seconds": 0.4}
    large = {"n_train": 5_000, "seconds": 5 + 0.5, "train_seconds": 5.0, "val_seconds": 0.4}
    one = times([small, large], (0.75 + 5.5 + 2 * 0.3) / 2, 10.0)
    shares = predicted_shares(one, n_workers=2)
    training = 10 * 6 * 250 * sum(range(5, 101, 5)) * 1e-3
    evaluation = 120 * (10 * 0.4 + 0.1)
    available = training + evaluation + 120 * 0.3 + 2 * (10 - 3.425)
    assert shares.outside == pytest.approx(100 * (1 - (training + evaluation) / available))
    assert shares.evaluation == pytest.approx(100 * evaluation / available)
