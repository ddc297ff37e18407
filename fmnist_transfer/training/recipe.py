"""A frozen `Recipe` for training a network, and the learning rate as a pure function of it. Imports no torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["float32", "tf32", "bf16"]  # arithmetic; weights, optimizer and losses stay float32
PrecisionFlag = Literal["auto", Precision]


@dataclass(frozen=True)
class Recipe:
    """Training settings. Dropout belongs to `CNN2Spec`. Raises ValueError for a value out of range."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 3e-3  # peak of the schedule
    weight_decay: float = 1e-2  # decoupled for adamw, an L2 penalty for adam
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    batch_size: int = 128
    epochs: int = 8
    flip: bool = False  # mirror each training image left-right with probability 1/2
    shift: int = 0  # move each training image by up to this many pixels on both axes, uniformly
    warm_up: float | None = None  # share of the steps in which the rate rises; None: 1/4 for one-cycle, 0 for constant

    def __post_init__(self) -> None:
        allowed = {
            "optimizer": self.optimizer in ("adam", "adamw"),
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "schedule": self.schedule in ("constant", "one-cycle"),
            "batch_size": self.batch_size >= 2,  # one image has no batch statistics
            "epochs": self.epochs >= 1,
            "shift": 0 <= self.shift < 28,
            "warm_up": self.warm_up is None or 0 <= self.warm_up < 1,
        }
        for name, good in allowed.items():
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)!r} is out of range")

    def steps_per_epoch(self, n_train: int) -> int:
        """Return the number of batches: an epoch's remainder is dropped; fewer images than a batch make one."""
        return max(1, n_train // self.batch_size)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the rate in the middle of `step` (0-based), so that no step has a rate of 0.

        one-cycle (Smith & Topin 2019) is half a cosine from a tenth to the peak, and one to a thousandth of it.
        constant rises linearly, if at all.
        """
        position, warm_up = (step + 0.5) / total_steps, self.warm_up_share
        if self.schedule == "constant":
            return self.learning_rate * (position / warm_up if position < warm_up else 1.0)
        start, end, passed = 1.0, 0.001, (position - warm_up) / (1 - warm_up)
        if position < warm_up:
            start, end, passed = 0.1, 1.0, position / warm_up
        return self.learning_rate * (end + (start - end) * (1 + math.cos(math.pi * passed)) / 2)

    @property
    def warm_up_share(self) -> float:
        """`warm_up`, else the schedule's default."""
        if self.warm_up is not None:
            return self.warm_up
        return 0.25 if self.schedule == "one-cycle" else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Leave out a `warm_up` of None, which is the schedule's own."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def still_known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Drop fields of specs and recipes of earlier versions, if they hold the one value that is left."""
    removed = {"pooling": "max", "conv_dropout": 0.0, "erase": 0.0}
    return {name: value for name, value in fields.items() if removed.get(name) != value}


# The original report's recipe reached 93.33 % validation accuracy on FMNIST-2.
REFERENCE_RECIPE = Recipe("adam", learning_rate=1e-4, weight_decay=0.0, schedule="constant", batch_size=256, epochs=100)
# The search's first trial trains `cnn2.HAND_MADE_SPEC` with this recipe.
HAND_MADE_RECIPE = Recipe(learning_rate=5e-3, weight_decay=5e-2, flip=True, epochs=6)
