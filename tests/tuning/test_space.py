"""Every corner of the search space builds, is affordable, and takes a step."""

import itertools
import re
from typing import Any

import optuna
import pytest
import torch

from fmnist_transfer.data.examples import Half
from fmnist_transfer.network.cnn2 import forward_mflops, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import fit
from tuning.space import AUGMENTATIONS, FIRST_TRIAL, GROWTHS, first_trial, on_edge, suggest

LOW = {"fc1": 64, "fc2": 32, "conv_dropout": 0.0, "fc_dropout": 0.0, "label_smoothing": 0.0}
HIGH = {"fc1": 512, "fc2": 256, "conv_dropout": 0.3, "fc_dropout": 0.6, "label_smoothing": 0.1}
RATES = {
    "adamw": ({"learning_rate": 3e-4, "weight_decay": 1e-5}, {"learning_rate": 1e-2, "weight_decay": 1e-1}),
    "sgd": ({"learning_rate": 0.02, "weight_decay": 1e-5}, {"learning_rate": 0.5, "weight_decay": 1e-2}),
}


def corners() -> list[dict[str, Any]]:
    """Both ends of every number, with each value of every category in some combination."""
    found = []
    categories = itertools.product((1, 2), (3, 5), ("none", "batch"), (0.0, 1.0))
    for i, (convs, kernel, normalisation, width) in enumerate(categories):
        optimizer = ("adamw", "sgd")[i % 2]
        ends = (LOW, HIGH)[i // 2 % 2] | {f"{optimizer}_{k}": v for k, v in RATES[optimizer][i // 4 % 2].items()}
        found.append(
            ends
            | {"convs_per_block": convs, "kernel_size": kernel, "normalisation": normalisation, "width": width}
            | {"growth": GROWTHS[i % 4], "optimizer": optimizer, "schedule": ("cosine", "one-cycle")[i % 2]}
            | {"batch_size": (128, 256, 512)[i % 3], "augmentation": list(AUGMENTATIONS)[i % 4]}
        )
    return found


@pytest.mark.parametrize("params", corners())
def test_every_corner_builds_and_takes_a_step(params: dict[str, Any], half: Half) -> None:
    trial = optuna.trial.FixedTrial(params)
    spec, recipe = suggest(trial, epochs=1, max_mflops=4.0)
    assert forward_mflops(spec) <= 4.0
    few = half.train.take(torch.arange(20))
    history = fit(fresh_network(spec, Streams(0)), few, half.val, recipe, Streams(0))
    assert history.final.step == 1


def test_without_a_limit_the_space_reaches_64_channels() -> None:
    params = next(p for p in corners() if p["width"] == 1.0 and p["growth"] == 2.0)
    spec, _ = suggest(optuna.trial.FixedTrial(params), epochs=1, max_mflops=None)
    assert spec.channels == (64, 128)


def test_width_is_monotone_in_cost() -> None:
    params = corners()[0]
    costs = []
    for width in (0.0, 0.25, 0.5, 0.75, 1.0):
        spec, _ = suggest(optuna.trial.FixedTrial(params | {"width": width}), epochs=1, max_mflops=8.0)
        costs.append(forward_mflops(spec))
    assert costs == sorted(costs)
    assert costs[0] < costs[-1] <= 8.0


@pytest.mark.parametrize(("limit", "channels"), [(3.54, (8, 20)), (4.0, (8, 20)), (40.0, (28, 70)), (None, (32, 80))])
def test_the_hand_made_configuration_is_as_wide_as_the_limit_allows(
    limit: float | None, channels: tuple[int, int]
) -> None:
    spec, recipe = suggest(optuna.trial.FixedTrial(first_trial(limit)), epochs=10, max_mflops=limit)
    assert spec.channels == channels
    assert recipe.learning_rate == FIRST_TRIAL["adamw_learning_rate"]


def test_a_best_point_on_the_edge_is_told() -> None:
    study = optuna.create_study()
    study.enqueue_trial(corners()[3] | {"width": 1.0})
    study.optimize(lambda trial: float(len(suggest(trial, epochs=1, max_mflops=4.0))), n_trials=1)
    edges = on_edge(study.best_trial)
    assert any(re.search(r"fc1\b.*\b512\b.*\b64\b.*\b512\b", edge) for edge in edges)
    assert not any(edge.startswith(("width", "conv_dropout = 0 ")) for edge in edges)
