"""Flags of `sweeps.transfer`."""

from dataclasses import dataclass
from typing import Literal

from fmnist_transfer.errors import UsageError
from fmnist_transfer.flags import Flags, TrainingSettings
from fmnist_transfer.terminal.command import check_distinct, check_range
from sweeps.grid import N_TUNING_REPLICATES, REPORTED, TUNING_REPLICATE, Init, traits


@dataclass(frozen=True, kw_only=True)
class TransferFlags(Flags):
    model_uri: str
    """Network to start from: models:/NAME/ALIAS or models:/NAME/VERSION."""
    fractions: tuple[int, ...] = tuple(range(5, 101, 5))
    """Percentages of the target's training images to train on, whole numbers from 1 to 100."""
    inits: tuple[Init, ...] = REPORTED
    """Starting points. pretrained and random are compared; controls are frozen, lp-ft, pretrained@K (with only the
    first K layers), selffer, random-twice, shrink-perturb and matched (see README)."""
    replicates: int = 3
    """Number of times to train every cell, each time with new random draws. Verdicts need at least 6."""
    recipe: Literal["model", "tuned"] = "model"
    """Training recipe. model: the network's own; tuned: the best of eight for each init, by 96 trainings per init."""
    pretrain_replicates: int = 0
    """Source networks to train first, so that each replicate starts from its own; 0: all start from --model-uri's."""
    epochs: int | None = None
    """Passes over the training images; default: as many as the network of --model-uri was trained for."""
    budget: Literal["epochs", "steps"] = "epochs"
    """Equal budget at each fraction. epochs: passes over its images; steps: optimiser steps (as many as at 100 %)."""
    stack: bool = False
    """Train a fraction's networks as one computation, for a GPU; for inits of a single training by the recipe."""
    retry_failed: bool = False
    """Also retry trainings whose loss became NaN or infinite; they fail again unless something else has changed."""

    def __post_init__(self) -> None:
        check_distinct("--fractions", self.fractions)
        check_distinct("--inits", self.inits)
        is_one_fit = {init: traits(init).is_one_fit for init in self.inits}  # raises for an unknown init
        for percent in self.fractions:
            check_range("--fractions", percent, 1, 100)
        check_range("--replicates", self.replicates, 1, TUNING_REPLICATE)
        check_range("--pretrain-replicates", self.pretrain_replicates, 0)
        n_replicates = max(self.replicates, N_TUNING_REPLICATES) if self.recipe == "tuned" else self.replicates
        if 0 < self.pretrain_replicates < n_replicates:
            need = f"each of the {n_replicates} replicates needs a source network of its own"
            raise UsageError(f"--pretrain-replicates {self.pretrain_replicates}: {need}")
        if self.stack and self.recipe == "tuned":
            raise UsageError("--stack trains the cells of a fraction by one recipe: leave it out with --recipe tuned")
        if self.stack and (apart := [init for init in self.inits if not is_one_fit[init]]):
            inits = " ".join(apart)
            raise UsageError(f"--stack trains all layers in a single training: leave it out with --inits {inits}")
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TransferSettings(TrainingSettings, TransferFlags):
    """Train on 5 %, 10 %, ... 100 % of one half of Fashion-MNIST, from the weights of a network tuned on the other half
    and from random weights, and judge four claims about transfer. The same command resumes a stopped sweep."""
