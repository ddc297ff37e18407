"""Flags of `sweeps.transfer`."""

from dataclasses import dataclass
from typing import Literal

from fmnist_transfer.errors import UsageError
from fmnist_transfer.flags import Flags, TrainingSettings
from fmnist_transfer.terminal.command import check_distinct, check_range
from sweeps.grid import REPORTED, TUNING_REPLICATE, Init


@dataclass(frozen=True, kw_only=True)
class TransferFlags(Flags):
    model_uri: str
    """The network to start from: models:/NAME/ALIAS, models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/NAME."""
    fractions: tuple[int, ...] = tuple(range(5, 101, 5))
    """Shares of the target's training images to train on, in whole percent from 1 to 100."""
    inits: tuple[Init, ...] = REPORTED
    """How networks start: pretrained and random are the question, the others controls; selffer trains twice."""
    replicates: int = 3
    """How often all of it is trained, each time by other random draws. From 6 on there are verdicts."""
    recipe: Literal["model", "tuned"] = "model"
    """How to train. model: all as the network was; tuned: each init by the best of nine (54 more trainings an init)."""
    pretrain_replicates: int = 0
    """Train so many source networks first, one for each replicate to start from; 0: all start from --model-uri's."""
    epochs: int | None = None
    """Passes over the training images; default: as many as the network of --model-uri was trained for."""
    budget: Literal["epochs", "steps"] = "epochs"
    """What is equal at each fraction: epochs, passes over its images; steps, optimiser steps (as many as at 100 %)."""
    stack: bool = False
    """Train all networks of a fraction as one computation: meant for a GPU, slower on a CPU."""
    retry_failed: bool = False
    """Also repeat trainings whose loss became infinite; they will fail again unless something else has changed."""

    def __post_init__(self) -> None:
        check_distinct("--fractions", self.fractions)
        check_distinct("--inits", self.inits)
        for percent in self.fractions:
            check_range("--fractions", percent, 1, 100)
        check_range("--replicates", self.replicates, 1, TUNING_REPLICATE)
        check_range("--pretrain-replicates", self.pretrain_replicates, 0)
        n_replicates = max(self.replicates, 2) if self.recipe == "tuned" else self.replicates
        if 0 < self.pretrain_replicates < n_replicates:
            raise UsageError(
                f"--pretrain-replicates {self.pretrain_replicates}: each of the {n_replicates} replicates needs a "
                "source network of its own"
            )
        if self.stack and self.recipe == "tuned":
            raise UsageError("--stack trains the cells of a fraction by one recipe: leave it out with --recipe tuned")
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TransferSettings(TrainingSettings, TransferFlags):
    """Train on 5 %, 10 %, ... 100 % of one half of Fashion-MNIST, from the weights of a network tuned on the other half
    and from random ones, and judge what that says of transfer. A sweep that was stopped goes on by the same command."""
