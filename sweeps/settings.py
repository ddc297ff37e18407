"""Flags of `sweeps.transfer`."""

import math
from dataclasses import dataclass
from typing import Literal

from fmnist_transfer.errors import UsageError
from fmnist_transfer.flags import Flags, TrainingSettings
from fmnist_transfer.terminal.command import check_distinct, check_range
from sweeps.grid import REPORTED, TUNING_REPLICATE, Grid, Init, traits

USUALLY_JUDGED = 5, 10, 25, 50, 100  # percent: more judged fractions would only widen the intervals


@dataclass(frozen=True, kw_only=True)
class TransferFlags(Flags):
    model_uri: str
    """Network to start from: models:/NAME/ALIAS or models:/NAME/VERSION."""
    fractions: tuple[int, ...] = tuple(range(5, 101, 5))
    """Percentages of the target's training images to train on, whole numbers from 1 to 100."""
    judged: tuple[int, ...] = ()
    """Fractions that carry the verdicts; default: those of 5, 10, 25, 50 and 100 that are trained, else all."""
    inits: tuple[Init, ...] = REPORTED
    """Starting points. pretrained and random are compared; controls are frozen, lp-ft, pretrained@K (with only the
    first K layers), selffer, random-twice, shrink-perturb and matched (see README)."""
    replicates: int = 8
    """Trainings of every cell of the judged fractions, each with new random draws. Verdicts come after the last."""
    curve_replicates: int = 2
    """The same of the other fractions, which only draw the curves; never more than --replicates."""
    recipe: Literal["model", "tuned"] = "model"
    """Training recipe. model: the network's own; tuned: the best of eight for each init, by 96 trainings per init."""
    pretrain_replicates: int = 0
    """Source networks, one per replicate; those of searches and other sweeps are used. 0: all use --model-uri's."""
    epochs: int | None = None
    """Passes over the training images; default: as many as the network of --model-uri was trained for."""
    learning_rate: float | None = None
    """Highest learning rate of these trainings; default: that of the network of --model-uri."""
    budget: Literal["epochs", "steps"] = "epochs"
    """Equal budget at each fraction. epochs: passes over its images; steps: optimiser steps (as many as at 100 %)."""
    stack: bool = False
    """Train a fraction's networks as one computation, for a GPU; for inits of a single training by the recipe."""
    retry_failed: bool = False
    """Also retry trainings whose loss became NaN or infinite; they fail again unless something else has changed."""

    def __post_init__(self) -> None:
        check_distinct("--fractions", self.fractions)
        check_distinct("--judged", self.judged or self.fractions)
        check_distinct("--inits", self.inits)
        # `--stack` can do one training of all layers by the recipe. Raises for an unknown init:
        apart = [init for init in self.inits if traits(init).n_trainings != 1 or traits(init).probes]
        for percent in self.fractions:
            check_range("--fractions", percent, 1, 100)
        if others := sorted(set(self.judged) - set(self.fractions)):
            raise UsageError(f"--judged {' '.join(map(str, others))}: must be among --fractions")
        check_range("--replicates", self.replicates, 1, TUNING_REPLICATE)
        check_range("--curve-replicates", self.curve_replicates, 1)
        if self.pretrain_replicates:  # each replicate needs a source network of its own
            check_range("--pretrain-replicates", self.pretrain_replicates, self.replicates)
        if self.stack and self.recipe == "tuned":
            raise UsageError("--stack trains the cells of a fraction by one recipe: leave it out with --recipe tuned")
        if self.stack and apart:
            raise UsageError(f"--stack trains all layers once: leave it out with --inits {' '.join(apart)}")
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate {self.learning_rate:g}: must be above 0")
        super().__post_init__()

    @property
    def grid(self) -> Grid:
        judged = sorted(self.judged or {*USUALLY_JUDGED} & {*self.fractions} or self.fractions)
        n_curve_replicates = min(self.curve_replicates, self.replicates)
        return Grid(tuple(sorted(self.fractions)), self.inits, self.replicates, tuple(judged), n_curve_replicates)


@dataclass(frozen=True, kw_only=True)
class TransferSettings(TrainingSettings, TransferFlags):
    """Train on 5 %, 10 %, ... 100 % of one half of Fashion-MNIST, from the weights of a network tuned on the other half
    and from random weights, and judge four claims about transfer. The same command resumes a stopped sweep."""
