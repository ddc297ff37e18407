"""Convert a trial to a network and a recipe; no other module does so.

Parameter `width` in [0, 1] selects among the channels that the cost limit allows with the trial's depth, kernel and
fully connected layers, so that no sample is rejected.
"""

import math
from dataclasses import replace
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
LEARNING_RATES = {"adamw": (3e-4, 1e-2), "sgd": (0.02, 0.5)}
WEIGHT_DECAYS = {"adamw": (1e-5, 1e-1), "sgd": (1e-5, 1e-2)}
SAME_NAMES = {  # fields of spec and recipe that are parameters
    HAND_MADE_SPEC: ("convs_per_block", "kernel_size", "fc1", "fc2", "normalisation", "fc_dropout", "conv_dropout"),
    HAND_MADE_RECIPE: ("optimizer", "schedule", "batch_size", "label_smoothing"),
}
FIRST_TRIAL: dict[str, Any] = {
    **{name: getattr(hand_made, name) for hand_made, names in SAME_NAMES.items() for name in names},
    "growth": HAND_MADE_SPEC.channels[1] / HAND_MADE_SPEC.channels[0],
    "adamw_learning_rate": HAND_MADE_RECIPE.learning_rate,
    "adamw_weight_decay": HAND_MADE_RECIPE.weight_decay,
    "augmentation": "flip",
}


def suggest(trial: optuna.trial.BaseTrial, *, epochs: int, max_mflops: float | None) -> tuple[CNN2Spec, Recipe]:
    """Draw the trial's parameters and build its network, of at most `max_mflops` per image, and its recipe.

    The order of the draws decides their values. `epochs` is equal for all trials of a study, so that pruning compares
    like with like.
    """
    spec = CNN2Spec(
        convs_per_block=trial.suggest_categorical("convs_per_block", [1, 2]),
        kernel_size=trial.suggest_categorical("kernel_size", [3, 5]),
        fc1=trial.suggest_int("fc1", 64, 512, log=True),
        fc2=trial.suggest_int("fc2", 32, 256, log=True),
    )
    affordable = affordable_channels(spec, trial.suggest_categorical("growth", GROWTHS), max_mflops)
    spec = replace(
        spec,
        channels=affordable[round(trial.suggest_float("width", 0.0, 1.0) * (len(affordable) - 1))],
        normalisation=cast(Literal["none", "batch"], trial.suggest_categorical("normalisation", ["none", "batch"])),
        conv_dropout=trial.suggest_float("conv_dropout", 0.0, 0.3),
        fc_dropout=trial.suggest_float("fc_dropout", 0.0, 0.6),
    )
    optimizer = cast(Literal["adamw", "sgd"], trial.suggest_categorical("optimizer", ["adamw", "sgd"]))
    recipe = Recipe(
        optimizer=optimizer,
        learning_rate=trial.suggest_float(f"{optimizer}_learning_rate", *LEARNING_RATES[optimizer], log=True),
        weight_decay=trial.suggest_float(f"{optimizer}_weight_decay", *WEIGHT_DECAYS[optimizer], log=True),
        schedule=cast(Literal["cosine", "one-cycle"], trial.suggest_categorical("schedule", ["cosine", "one-cycle"])),
        batch_size=trial.suggest_categorical("batch_size", [128, 256, 512]),
        epochs=epochs,
        label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.1),
        **AUGMENTATIONS[trial.suggest_categorical("augmentation", list(AUGMENTATIONS))],
    )
    return spec, recipe


def first_trial(max_mflops: float | None) -> dict[str, Any]:
    """Parameters of the hand-made configuration, as wide as the limit allows, up to 32 channels in the first block."""
    channels = affordable_channels(HAND_MADE_SPEC, FIRST_TRIAL["growth"], max_mflops)
    index = max(i for i, (first, _) in enumerate(channels) if i == 0 or first <= 32)
    return FIRST_TRIAL | {"width": index / max(1, len(channels) - 1)}


def affordable_channels(spec: CNN2Spec, growth: float, max_mflops: float | None) -> list[tuple[int, int]]:
    """Channels of both blocks within the limit, ascending; always includes the narrowest (see `check_limit`)."""
    limit = math.inf if max_mflops is None else max_mflops
    pairs = [(first, round(first * growth)) for first in FIRST_CHANNELS]
    return [pair for i, pair in enumerate(pairs) if i == 0 or forward_mflops(replace(spec, channels=pair)) <= limit]


def check_limit(max_mflops: float | None) -> None:
    """Raise UsageError if the limit excludes the narrowest network of the costliest corner of the space."""
    narrowest = FIRST_CHANNELS[0], round(FIRST_CHANNELS[0] * max(GROWTHS))
    costliest = CNN2Spec(channels=narrowest, convs_per_block=2, kernel_size=5, fc1=512, fc2=256)
    smallest = math.ceil(100 * forward_mflops(costliest)) / 100
    if max_mflops is not None and max_mflops < smallest:
        raise UsageError(f"--max-mflops {max_mflops}: the search space needs {smallest} or more, or none")


def on_edge(trial: optuna.trial.FrozenTrial) -> list[str]:
    """Numeric parameters of the trial in the outer 2 % of their range, each with value and range.

    Excluded are ends that cannot be moved: `width` at 1, which the cost limit sets, and lower ends at zero.
    """
    edges = []
    for name, value in trial.params.items():
        end = trial.distributions[name]
        if isinstance(end, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution):
            scale = math.log if end.log else float
            share = (scale(value) - scale(end.low)) / (scale(end.high) - scale(end.low))
            if (share < 0.02 and end.low > 0) or (share > 0.98 and name != "width"):
                edges.append(f"{name} = {value:.3g} (range {end.low:g} to {end.high:g})")
    return edges
