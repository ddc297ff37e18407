"""Convert a trial to a network and a recipe; no other module does so.

Parameter `shape` is the number of blocks, their convolutions and kernel. `width` in [0, 1] selects among the channels
that the cost limit allows with that shape, so that no sample is rejected.
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

SPACE_VERSION = 2  # Bump by hand when earlier trials must not share a study with later ones.
FIRST_CHANNELS = range(VECTOR, 65, VECTOR)  # channels of the first block
GROWTHS = (1.5, 2.0, 3.0)  # of channels from block to block
LEARNING_RATE, WEIGHT_DECAY = (2e-3, 1.2e-2), (1e-2, 4e-1)
BATCH_SIZES = [64, 128]
CHANGES: list[dict[str, Any]] = [{"batch_size": 64}]  # of the hand-made configuration, tried after it
AUGMENTATIONS: dict[str, dict[str, Any]] = {"flip": {"flip": True}, "flip+shift": {"flip": True, "shift": 1}}


def suggest(trial: optuna.trial.BaseTrial, *, epochs: int, max_cost: float | None) -> tuple[CNN2Spec, Recipe]:
    """Draw the trial's parameters and build its network, of at most `max_cost`, and its recipe.

    The order of the draws decides their values. `epochs` is equal for all trials of a study, so that pruning compares
    like with like.
    """
    shapes = affordable(max_cost)
    specs = shapes[trial.suggest_categorical("shape", list(shapes))]
    spec = replace(
        specs[round(trial.suggest_float("width", 0.0, 1.0) * (len(specs) - 1))],
        conv_dropout=trial.suggest_float("conv_dropout", 0.0, 0.2),
        fc_dropout=trial.suggest_float("fc_dropout", 0.0, 0.5),
    )
    recipe = replace(
        HAND_MADE_RECIPE,
        learning_rate=trial.suggest_float("learning_rate", *LEARNING_RATE, log=True),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAY, log=True),
        batch_size=trial.suggest_categorical("batch_size", BATCH_SIZES),
        epochs=epochs,
        **AUGMENTATIONS[trial.suggest_categorical("augmentation", list(AUGMENTATIONS))],
    )
    return spec, recipe


def starts(max_cost: float | None) -> list[dict[str, Any]]:
    """Parameters of the trials to begin with.

    The first is the hand-made configuration, as wide as the limit allows, up to 32 channels in the first block.
    """
    shapes = affordable(max_cost)
    shape = _shape(HAND_MADE_SPEC) if _shape(HAND_MADE_SPEC) in shapes else list(shapes)[-1]
    index = max(i for i, spec in enumerate(shapes[shape]) if i == 0 or spec.channels[0] <= 32)
    recipe = {name: getattr(HAND_MADE_RECIPE, name) for name in ("learning_rate", "weight_decay", "batch_size")}
    dropout = {name: getattr(HAND_MADE_SPEC, name) for name in ("conv_dropout", "fc_dropout")}
    width = index / max(1, len(shapes[shape]) - 1)
    first = {"shape": shape, "width": width, "augmentation": "flip"} | dropout | recipe
    return [first, *(first | change for change in CHANGES)]


@functools.cache
def affordable(max_cost: float | None) -> dict[str, list[CNN2Spec]]:
    """Networks within the limit by shape, each list ascending in cost; dropout is the hand-made network's.

    Raises UsageError if there is none.
    """
    shapes: dict[str, set[CNN2Spec]] = {}
    costs: list[float] = []
    for n_blocks, convs, kernel in itertools.product((2, 3), (1, 2), (3, 5)):
        for first, growth in itertools.product(FIRST_CHANNELS, GROWTHS):
            channels = tuple(padded(round(first * growth**i)) for i in range(n_blocks))
            spec = replace(HAND_MADE_SPEC, channels=channels, convs_per_block=convs, kernel_size=kernel)
            costs.append(training_cost(spec))
            if max_cost is None or costs[-1] <= max_cost:
                shapes.setdefault(_shape(spec), set()).add(spec)
    if not shapes:
        smallest = math.ceil(100 * min(costs)) / 100
        raise UsageError(f"--max-cost {max_cost}: the search space needs {smallest} or more, or none")
    return {shape: sorted(specs, key=training_cost) for shape, specs in shapes.items()}


def _shape(spec: CNN2Spec) -> str:
    return f"{len(spec.channels)} blocks of {spec.convs_per_block} {spec.kernel_size}x{spec.kernel_size}"


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
