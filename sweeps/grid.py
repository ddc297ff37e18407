"""The plan of a sweep as plain data: its cells and the order in which they run. Imports no torch."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_transfer.errors import UsageError
from fmnist_transfer.store.roles import TAG_LENGTH

Init = str  # a name in INITS, or pretrained@K
REPORTED: tuple[Init, ...] = ("pretrained", "random")  # the two inits of the original report
SHRINK, PERTURB = 0.4, 0.1  # factors of shrink-perturb (Ash & Adams 2020)
TUNING_REPLICATE = 1_000  # replicates from this number on choose recipes and are not compared
N_TUNING_REPLICATES = 4
N_TUNING = 96  # cells that choose an init's recipe: 8 settings, 3 fractions, 4 replicates


@dataclass(frozen=True)
class InitTraits:
    """Facts of an init that a sweep needs; `training/inits.py` starts and trains it."""

    colour: str  # in figures
    copies: bool = True  # starts from trained weights, changed or not
    probes: bool = False  # fits the classifier alone first, on features that are computed once
    lengthens: int = 1  # epochs, as a multiple of the recipe's
    n_trainings: int = 1  # of all layers by the recipe


TRAITS: dict[Init, InitTraits] = {
    "pretrained": InitTraits("#1b6ca8"),
    "random": InitTraits("#d1603d", copies=False),
    "frozen": InitTraits("#5b8c5a", probes=True, n_trainings=0),
    "lp-ft": InitTraits("#8e5ea2", probes=True),
    "selffer": InitTraits("#b8860b", n_trainings=2),
    "random-twice": InitTraits("#a0354f", copies=False, lengthens=2, n_trainings=2),
    "shrink-perturb": InitTraits("#3aa6a6"),
    "matched": InitTraits("#7f7f7f"),
}
INITS: tuple[Init, ...] = tuple(TRAITS)
LAYERED = re.compile(r"pretrained@([1-9][0-9]?)")  # copies only the first K layers (Yosinski et al. 2014, AnB+)
LAYERED_COLOURS = ("#08519c", "#3182bd", "#6baed6", "#9ecae1", "#54278f", "#756bb1", "#9e9ac8", "#bcbddc")


def n_copied_layers(init: Init) -> int | None:
    """Return K of `pretrained@K`, None for other inits."""
    match = LAYERED.fullmatch(init)
    return int(match[1]) if match else None


def traits(init: Init) -> InitTraits:
    """Look the init up. Raises UsageError if there is no such init."""
    if k := n_copied_layers(init):
        return InitTraits(LAYERED_COLOURS[(k - 1) % len(LAYERED_COLOURS)])
    if init not in TRAITS:
        raise UsageError(f"--inits {init}: must be {', '.join(INITS)} or pretrained@K, K being a number of layers")
    return TRAITS[init]


@dataclass(frozen=True, order=True)
class RecipeChange:
    """Values that replace those of the registered recipe in a tuned cell."""

    learning_rate: float
    warm_up: float  # share of the steps in which the learning rate rises

    def __str__(self) -> str:
        return f"lr {self.learning_rate:.3g} warm-up {self.warm_up:.2g}"


@dataclass(frozen=True)
class Cell:
    """One training run: `percent` of the target's training images, an init, and a replicate (a set of random draws)."""

    percent: int
    init: Init
    replicate: int
    change: RecipeChange | None = None  # None: the registered recipe

    @property
    def name(self) -> str:
        change = f" {self.change}" if self.change else ""
        return f"{self.init} {self.percent:03d}% r{self.replicate}{change}"

    @property
    def labels(self) -> dict[str, Any]:
        """Params and tags by which its run is found; a padded percent sorts as a number."""
        return {"percent": f"{self.percent:03d}", "init": self.init, "replicate": self.replicate}

    @property
    def setting(self) -> dict[str, Any]:
        """Changed values of the recipe, by name."""
        return dataclasses.asdict(self.change) if self.change else {}

    def work(self, budget: str) -> float:
        """Rough training time, in any unit: evaluation costs what 7 % of the images do, and `frozen` a fifth."""
        return max(traits(self.init).n_trainings, 0.2) * ((100 if budget == "steps" else self.percent) + 7)

    @property
    def position(self) -> tuple[Any, ...]:
        """Sort key of tables."""
        return self.percent, self.init, self.replicate, tuple(self.setting.values())


class Grid(NamedTuple):
    """Cells that a command plans: more replicates of the judged fractions, which carry the verdicts, than of others."""

    percents: tuple[int, ...]  # ascending
    inits: tuple[Init, ...]
    n_replicates: int  # of the judged fractions
    judged: tuple[int, ...]
    n_curve_replicates: int  # of the other fractions, which only draw the curves

    def has(self, cell: Cell) -> bool:
        n = self.n_replicates if cell.percent in self.judged else self.n_curve_replicates
        return cell.percent in self.percents and cell.init in self.inits and cell.replicate < n

    def cells(self) -> list[Cell]:
        """List the cells replicate by replicate, judged fractions first and inits together."""
        cells = list[Cell]()
        for i in range(self.n_replicates):
            # The first shows curves early; later ones leave no worker alone with a long cell at the end.
            order = sorted(self.percents, key=lambda p: (p not in self.judged, -p if i else p))
            cells += [Cell(percent, init, i) for percent, init in itertools.product(order, self.inits)]
        return [cell for cell in cells if self.has(cell)]


def by_fraction(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Group cells by fraction, the largest first; each group is sorted by replicate."""
    ordered = sorted(cells, key=lambda cell: (-cell.percent, cell.replicate))
    return [tuple(group) for _, group in itertools.groupby(ordered, key=lambda cell: cell.percent)]


def grids_of(tags: Mapping[str, str]) -> list[Grid]:
    """Read every plan so far, in order, from the tags of the sweep's parent run."""
    plans = json.loads(tags.get("grids", "[]"))
    return [Grid._make(tuple(part) if isinstance(part, list) else part for part in plan) for plan in plans]


def grid_tags(tags: Mapping[str, str], new_grid: Grid) -> dict[str, Any]:
    """Return the tags after the new grid has become the last of the plans; the earliest go if there is no room."""
    grids = [*(grid for grid in grids_of(tags) if grid != new_grid), new_grid]
    while len(text := json.dumps(grids, separators=(",", ":"))) > TAG_LENGTH:
        del grids[0]
    return {
        "grids": text,
        "fractions": " ".join(map(str, sorted({percent for grid in grids for percent in grid.percents}))),
        "inits": " ".join(sorted({init for grid in grids for init in grid.inits})),
        "replicates": max(grid.n_replicates for grid in grids),
    }


def verdicts_at(tags: Mapping[str, str]) -> set[int]:
    """Read the numbers of replicates at which verdicts were given."""
    return {int(n) for n in tags.get("verdicts_at", "").split()}


def verdict_tags(tags: Mapping[str, str], grid: Grid) -> dict[str, str]:
    """Return the tag after a verdict on this plan, so that one on more replicates is marked as an extension."""
    return {"verdicts_at": " ".join(map(str, sorted(verdicts_at(tags) | {grid.n_replicates})))}
