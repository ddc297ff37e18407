"""The arithmetic of a sweep's wall time."""

import pytest

from fmnist_transfer.benchmark.commands import predicted_percents
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE


def test_predicted_percents_of_the_default_sweep() -> None:
    small = {"n_train": 250, "cost": {"seconds": 0.25 + 0.5, "train_seconds": 0.25, "val_seconds": 0.4}}
    large = {"n_train": 5_000, "cost": {"seconds": 5 + 0.5, "train_seconds": 5.0, "val_seconds": 0.4}}
    result = {"cells": [small, large], "stages": {"cells": (0.75 + 5.5 + 2 * 0.3) / 2}}
    percents = predicted_percents(result, 10.0, n_workers=2)
    n_epochs, n_cells = HAND_MADE_RECIPE.epochs, 2 * (5 * 8 + 15 * 2)
    training = n_epochs * 2 * 250 * (8 * 190 + 2 * 860) * 1e-3  # judged percents add up to 190, the others to 860
    evaluation = n_cells * (n_epochs * 0.4 + 0.1)
    available = training + evaluation + n_cells * 0.3 + 2 * (10 - 3.425)
    assert percents == pytest.approx((100 * (1 - (training + evaluation) / available), 100 * evaluation / available))
