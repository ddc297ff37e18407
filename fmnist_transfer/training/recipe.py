"""A frozen `Recipe` for training a network, and the learning rate as a pure function of it. Imports no torch."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

LATER = ("warm_up",)  # fields that earlier recipes lack
Precision = Literal["float32", "tf32", "bf16"]  # arithmetic; weights, optimizer and losses stay float32
PrecisionFlag = Literal["auto", Precision]


@dataclass(frozen=True)
class Recipe:
    """Training settings. Dropout belongs to `CNN2Spec`. Raises ValueError for a value out of range."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"  # sgd uses Nesterov momentum 0.9
    learning_rate: float = 3e-3  # peak of the schedule
    weight_decay: float = 1e-2  # decoupled for adamw, an L2 penalty for adam and sgd
    schedule: Literal["constant", "cosine", "one-cycle"] = "one-cycle"
    batch_size: int = 128
    epochs: int = 8
    flip: bool = False  # mirror each training image left-right with probability 1/2
    shift: int = 0  # move each training image by up to this many pixels on both axes, uniformly
    erase: float = 0.0  # probability of blanking one random rectangle of a training image (Zhong et al. 2017)
    warm_up: float | None = None  # share of the steps in which the rate rises; None: 1/4 for one-cycle, 0 for others

    def __post_init__(self) -> None:
        allowed = {
            "optimizer": self.optimizer in ("adam", "adamw", "sgd"),
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "schedule": self.schedule in ("constant", "cosine", "one-cycle"),
            "batch_size": self.batch_size >= 2,  # one image has no batch statistics
            "epochs": self.epochs >= 1,
            "shift": 0 <= self.shift < 28,
            "erase": 0 <= self.erase <= 1,
            "warm_up": self.warm_up is None or 0 <= self.warm_up < 1,
        }
        for name, good in allowed.items():
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)!r} is out of range")

    def steps_per_epoch(self, n_train: int) -> int:
        """Return the number of batches: an epoch's remainder is dropped; fewer images than a batch make one."""
        return max(1, n_train // self.batch_size)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the rate of `step` (0-based), read at the middle of the step, so that no step has a rate of 0.

        one-cycle (Smith & Topin 2019) rises and falls by cosines, from a tenth to a thousandth of its peak. The others
        rise linearly.
        """
        position, warm_up = (step + 0.5) / total_steps, self.warm_up_share
        one_cycle = self.schedule == "one-cycle"
        if position < warm_up:
            climbed = position / warm_up
            return self.learning_rate * (_cosine(0.1, 1.0, climbed) if one_cycle else climbed)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * _cosine(1.0, 0.001 if one_cycle else 0.0, (position - warm_up) / (1 - warm_up))

    @property
    def warm_up_share(self) -> float:
        """`warm_up`, else the schedule's default."""
        own = 0.25 if self.schedule == "one-cycle" else 0.0
        return own if self.warm_up is None else self.warm_up

    def to_dict(self) -> dict[str, Any]:
        """Return every field except those of `LATER` at their default, so identities of earlier recipes stay equal."""
        fields = dataclasses.asdict(self).items()
        return {name: value for name, value in fields if name not in LATER or value != getattr(Recipe, name)}


def _cosine(start: float, end: float, position: float) -> float:
    """Return half a cosine from `start` at position 0 to `end` at position 1."""
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


# The original report's recipe reached 93.33 % validation accuracy on FMNIST-2.
REFERENCE_RECIPE = Recipe("adam", learning_rate=1e-4, weight_decay=0.0, schedule="constant", batch_size=256, epochs=100)
# The search's first trial trains `cnn2.HAND_MADE_SPEC` with this recipe.
HAND_MADE_RECIPE = Recipe(learning_rate=5e-3, weight_decay=5e-2, flip=True, epochs=6)
