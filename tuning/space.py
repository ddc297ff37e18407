"""Convert a trial to a network and a recipe; no other module does so.

Parameter `network` is a number in the list of networks within the cost limit, so that no sample is rejected.
"""

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import optuna

from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, CNN2Spec
from fmnist_transfer.network.cost import VECTOR, padded, training_cost
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE, Recipe

SPACE_VERSION = 3  # Bump by hand when earlier trials must not share a study with later ones.
FIRST_CHANNELS = range(VECTOR, 65, VECTOR)  # channels of the first block
GROWTHS = (1.5, 2.0, 3.0)  # of channels from block to block
FULLY_CONNECTED = ((128, 64), (256, 128))  # outputs of `fc1` and `fc2`
LEAST = 0.6  # of the costliest affordable network's cost: cheaper ones leave time unused
LEARNING_RATE, WEIGHT_DECAY = (1e-3, 1e-2), (1e-2, 5e-1)
RECIPE = ("learning_rate", "weight_decay", "batch_size", "shift")  # parameters that are fields of the recipe
CHANGES: list[dict[str, Any]] = [  # of the hand-made configuration, tried after it
    {"fc_dropout": 0.0, "weight_decay": 0.15},
    {"fc_dropout": 0.0, "weight_decay": 0.15, "learning_rate": 4e-3, "batch_size": 64},
]


def suggest(trial: optuna.trial.BaseTrial, *, epochs: int, max_cost: float | None) -> tuple[CNN2Spec, Recipe]:
    """Draw the trial's parameters, whose order decides their values, and build its network and recipe."""
    networks = affordable(max_cost)
    spec = networks[trial.suggest_int("network", 0, len(networks) - 1)]
    recipe = replace(
        HAND_MADE_RECIPE,
        learning_rate=trial.suggest_float("learning_rate", *LEARNING_RATE, log=True),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAY, log=True),
        batch_size=trial.suggest_categorical("batch_size", [64, 128]),
        shift=trial.suggest_categorical("shift", [0, 1]),
        epochs=epochs,
    )
    return replace(spec, fc_dropout=trial.suggest_float("fc_dropout", 0.0, 0.4)), recipe


def starts(max_cost: float | None) -> list[dict[str, Any]]:
    """Parameters of the trials to begin with: the hand-made configuration and `CHANGES` of it.

    Its network is as wide as the limit allows, up to 32 channels in the first block; below its cost, the costliest one.
    """
    networks, hand_made = affordable(max_cost), HAND_MADE_SPEC.channels
    ours = {i: spec.channels for i, spec in enumerate(networks) if replace(spec, channels=hand_made) == HAND_MADE_SPEC}
    alike = [i for i, channels in ours.items() if len(channels) == len(hand_made) and channels[0] <= 32]
    number = max(alike, default=len(networks) - 1)
    recipe = {name: getattr(HAND_MADE_RECIPE, name) for name in RECIPE}
    first = {"network": number, "fc_dropout": HAND_MADE_SPEC.fc_dropout} | recipe
    return [first | change for change in [{}, *CHANGES]]


@functools.cache
def affordable(max_cost: float | None) -> list[CNN2Spec]:
    """Networks within the limit and not much cheaper, ascending in cost. Raises UsageError if there is none."""
    found = set[CNN2Spec]()
    for convs, n_blocks, kernel, (fc1, fc2) in itertools.product((1, 2), (2, 3), (3, 5), FULLY_CONNECTED):
        layers: dict[str, Any] = {"convs_per_block": convs, "kernel_size": kernel, "fc1": fc1, "fc2": fc2}
        for first, growth in itertools.product(FIRST_CHANNELS, GROWTHS):
            channels = tuple(padded(round(first * growth**i)) for i in range(n_blocks))
            found.add(replace(HAND_MADE_SPEC, channels=channels, **layers))
    limit = math.inf if max_cost is None else max_cost
    networks = [spec for spec in found if training_cost(spec) <= limit]
    if not networks:
        smallest = math.ceil(100 * min(map(training_cost, found))) / 100
        raise UsageError(f"--max-cost {max_cost}: the search space needs {smallest} or more, or none")
    lowest = 0.0 if max_cost is None else LEAST * max(map(training_cost, networks))
    networks = [spec for spec in networks if training_cost(spec) >= lowest]
    return sorted(networks, key=lambda spec: (training_cost(spec), spec.channels))


def on_edge(trial: optuna.trial.FrozenTrial) -> list[str]:
    """Numeric parameters of the trial in the outer 2 % of their range, each with value and range.

    Excluded are the number of the network, which the cost limit bounds, and lower ends at zero.
    """
    edges = []
    for name, value in trial.params.items():
        if isinstance(end := trial.distributions[name], optuna.distributions.FloatDistribution):
            scale = math.log if end.log else float
            share = (scale(value) - scale(end.low)) / (scale(end.high) - scale(end.low))
            if (share < 0.02 and end.low > 0) or share > 0.98:
                edges.append(f"{name} = {value:.3g} (range {end.low:g} to {end.high:g})")
    return edges
