"""Flags of `tuning.search`."""

import re
from dataclasses import dataclass
from typing import Literal

from fmnist_transfer.data.split import parse_split
from fmnist_transfer.errors import UsageError
from fmnist_transfer.flags import Flags, TrainingSettings, check_driver
from fmnist_transfer.terminal.command import check_range


@dataclass(frozen=True, kw_only=True)
class SearchFlags(Flags):
    trials: int = 16
    """Total number of networks to try; a search with fewer continues up to this number."""
    epochs: int = 6
    """Passes over the training images per trial; poor trials are stopped earlier."""
    max_cost: float | Literal["none"] = 1.1
    """Largest network to try, by its training time on a CPU: 2 takes twice the default network's; none: no limit."""
    split: str = "0-4/5-9"
    """SOURCE/TARGET classes: 0-4/5-9, 5-9/0-4, even/odd, odd/even, ten digits 01234/56789, or random:S for a seed S."""
    top: int = 4
    """Number of best trials to train again before one is registered, since the best score is partly luck."""
    retrain_seeds: int = 3
    """Number of fresh seeds of the best two of them (--like: of the network; --reference: one)."""
    reference: bool = False
    """Do not search: train the original report's network with its recipe (100 epochs) and register it."""
    like: str | None = None
    """Do not search: train the network and recipe of this model, such as models:/cnn2/best, on another --split."""
    promote: bool = False
    """Move alias best to the new model even if its score is lower."""
    study_name: str | None = None
    """Name of the Optuna study; default: cnn2, or cnn2-s02468 and the like for another --split."""
    storage: str | None = None
    """Study database: a file or a URI (postgresql://...); default: optuna.db beside the runs."""
    timeout: float | None = None
    """Seconds after which no further trial starts; default: no limit."""

    def __post_init__(self) -> None:
        flags = {name: "--" + name.replace("_", "-") for name in SearchFlags.__dataclass_fields__}
        lowest = {"trials": 1, "epochs": 1, "top": 1, "retrain_seeds": 1, "max_cost": 0, "timeout": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) not in (None, "none"):
                check_range(flags[name], value, low)
        search_only = ["trials", "epochs", "max_cost", "top", "study_name", "storage", "timeout"]
        search_only += ["retrain_seeds", "like"] if self.reference else []
        given = [flags[name] for name in search_only if getattr(self, name) != getattr(SearchFlags, name)]
        if given and not self.is_search:
            flag = "--reference" if self.reference else "--like"
            raise UsageError(f"{flag} trains one fixed network by one fixed recipe: leave out {', '.join(given)}")
        if self.study_name is not None and not re.fullmatch(r"[\w.-]+", self.study_name):
            raise UsageError(f"--study-name {self.study_name}: use letters, digits, '_', '.' and '-'")
        check_driver("--storage", self.storage)
        parse_split(self.split)
        super().__post_init__()

    @property
    def study(self) -> str:
        return self.study_name or f"cnn2{parse_split(self.split).suffix}"

    @property
    def is_search(self) -> bool:
        return not self.reference and self.like is None

    @property
    def n_seeds(self) -> int:
        return 1 if self.reference else self.retrain_seeds

    @property
    def cost_limit(self) -> float | None:
        return None if self.max_cost == "none" else self.max_cost


@dataclass(frozen=True, kw_only=True)
class SearchSettings(TrainingSettings, SearchFlags):
    """Find the network and the recipe that do best on the source half of Fashion-MNIST, train the best again, and
    register the winner for the sweep. The same command continues a stopped search."""
