"""Convert a trial to a network and a recipe; no other module does so.

Parameter `width` in [0, 1] selects among the channels that the cost limit allows with the trial's depth, kernel and
fully connected layers, so that no sample is rejected.
"""

import math
from typing import Any, Literal, cast

import optuna

from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, CNN2Spec, forward_mflops
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE, Recipe

SPACE_VERSION = 1  # Bump by hand when earlier trials must not share a study with later ones.
FIRST_CHANNELS = range(4, 65, 2)  # channels of the first block
GROWTHS = (1.5, 2.0, 2.5, 3.0)  # ratio of second-block to first-block channels
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "flip": {"flip": True},
    "flip+shift": {"flip": True, "shift": 2},
    "flip+erase": {"flip": True, "erase": 0.5},
}
EDGE = 0.02  # share of a range that counts as its edge

# The hand-made configuration widens with the limit, up to this number of channels in the first block.
FIRST_CHANNELS_BY_HAND = 32
_SPEC, _RECIPE = HAND_MADE_SPEC, HAND_MADE_RECIPE
FIRST_TRIAL: dict[str, Any] = {
    "convs_per_block": _SPEC.convs_per_block,
    "kernel_size": _SPEC.kernel_size,
    "growth": _SPEC.channels[1] / _SPEC.channels[0],
    "fc1": _SPEC.fc1,
    "fc2": _SPEC.fc2,
    "normalisation": _SPEC.normalisation,
    "fc_dropout": _SPEC.fc_dropout,
    "conv_dropout": _SPEC.conv_dropout,
    "optimizer": _RECIPE.optimizer,
    "adamw_learning_rate": _RECIPE.learning_rate,
    "adamw_weight_decay": _RECIPE.weight_decay,
    "schedule": _RECIPE.schedule,
    "batch_size": _RECIPE.batch_size,
    "label_smoothing": _RECIPE.label_smoothing,
    "augmentation": "flip",
}


def suggest(trial: optuna.trial.BaseTrial, *, epochs: int, max_mflops: float | None) -> tuple[CNN2Spec, Recipe]:
    """Draw the trial's parameters and build its network and recipe.

    Args:
        epochs: equal for all trials of a study, so that pruning compares like with like.
        max_mflops: limit of the network's forward MFLOPs per image; None: no limit.
    """
    convs = trial.suggest_categorical("convs_per_block", [1, 2])
    kernel = trial.suggest_categorical("kernel_size", [3, 5])
    fc1 = trial.suggest_int("fc1", 64, 512, log=True)
    fc2 = trial.suggest_int("fc2", 32, 256, log=True)
    growth = trial.suggest_categorical("growth", GROWTHS)
    affordable = affordable_channels(convs, kernel, growth, (fc1, fc2), max_mflops)
    width = trial.suggest_float("width", 0.0, 1.0)
    spec = CNN2Spec(
        channels=affordable[round(width * (len(affordable) - 1))],
        convs_per_block=convs,
        kernel_size=kernel,
        normalisation=cast(Literal["none", "batch"], trial.suggest_categorical("normalisation", ["none", "batch"])),
        conv_dropout=trial.suggest_float("conv_dropout", 0.0, 0.3),
        fc1=fc1,
        fc2=fc2,
        fc_dropout=trial.suggest_float("fc_dropout", 0.0, 0.6),
    )
    optimizer = cast(Literal["adamw", "sgd"], trial.suggest_categorical("optimizer", ["adamw", "sgd"]))
    if optimizer == "adamw":
        learning_rate = trial.suggest_float("adamw_learning_rate", 3e-4, 1e-2, log=True)
        weight_decay = trial.suggest_float("adamw_weight_decay", 1e-5, 1e-1, log=True)
    else:
        learning_rate = trial.suggest_float("sgd_learning_rate", 0.02, 0.5, log=True)
        weight_decay = trial.suggest_float("sgd_weight_decay", 1e-5, 1e-2, log=True)
    recipe = Recipe(
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=cast(Literal["cosine", "one-cycle"], trial.suggest_categorical("schedule", ["cosine", "one-cycle"])),
        batch_size=trial.suggest_categorical("batch_size", [128, 256, 512]),
        epochs=epochs,
        label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.1),
        **AUGMENTATIONS[trial.suggest_categorical("augmentation", list(AUGMENTATIONS))],
    )
    return spec, recipe


def first_trial(max_mflops: float | None) -> dict[str, Any]:
    """Parameters of the hand-made configuration, as wide as the limit allows, up to `FIRST_CHANNELS_BY_HAND`."""
    channels = affordable_channels(2, 3, 2.5, (128, 64), max_mflops)
    index = max(i for i, (first, _) in enumerate(channels) if i == 0 or first <= FIRST_CHANNELS_BY_HAND)
    return FIRST_TRIAL | {"width": index / max(1, len(channels) - 1)}


def affordable_channels(
    convs: int, kernel: int, growth: float, fc: tuple[int, int], max_mflops: float | None
) -> list[tuple[int, int]]:
    """Channels of both blocks within the limit, ascending; always includes the narrowest (see `check_limit`)."""
    limit = math.inf if max_mflops is None else max_mflops
    pairs = [(first, round(first * growth)) for first in FIRST_CHANNELS]
    return [pair for i, pair in enumerate(pairs) if i == 0 or _mflops(pair, convs, kernel, fc) <= limit]


def check_limit(max_mflops: float | None) -> None:
    """Raise UsageError if the limit excludes the narrowest network of the costliest corner of the space."""
    narrowest = FIRST_CHANNELS[0], round(FIRST_CHANNELS[0] * max(GROWTHS))
    smallest = math.ceil(100 * _mflops(narrowest, 2, 5, (512, 256))) / 100
    if max_mflops is not None and max_mflops < smallest:
        raise UsageError(f"--max-mflops {max_mflops}: the search space needs {smallest} or more, or none")


def _mflops(channels: tuple[int, int], convs: int, kernel: int, fc: tuple[int, int]) -> float:
    return forward_mflops(CNN2Spec(channels=channels, convs_per_block=convs, kernel_size=kernel, fc1=fc[0], fc2=fc[1]))


def on_edge(trial: optuna.trial.FrozenTrial) -> list[str]:
    """Numeric parameters of the trial that lie at an end of their range, each with value and range.

    Excluded are ends that cannot be moved: `width` at 1, which the cost limit sets, and lower ends at zero.
    """
    edges = []
    for name, distribution in trial.distributions.items():
        if not isinstance(distribution, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution):
            continue
        scale = math.log if distribution.log else float
        low, high, value = (scale(x) for x in (distribution.low, distribution.high, trial.params[name]))
        share = (value - low) / (high - low)
        if (share < EDGE and distribution.low > 0) or (share > 1 - EDGE and name != "width"):
            edges.append(f"{name} = {trial.params[name]:.3g} (range {distribution.low:g} to {distribution.high:g})")
    return edges
