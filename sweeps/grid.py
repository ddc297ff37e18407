"""The plan of a sweep as plain data: its cells and the order in which they run. Imports no torch."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.recipe import Recipe

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
    n_trainings: float = 1.0  # work of a cell, in trainings of all layers by the recipe; 0 makes the recipe irrelevant

    @property
    def is_one_fit(self) -> bool:
        """True for one training of all layers by the recipe, which `--stack` can do."""
        return self.n_trainings == 1 and not self.probes


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

    def applied_to(self, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, **dataclasses.asdict(self))

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
    def setting(self) -> dict[str, float]:
        return dataclasses.asdict(self.change) if self.change else {}

    @property
    def position(self) -> tuple[Any, ...]:
        """Sort key of tables."""
        return self.percent, self.init, self.replicate, tuple(self.setting.values())


class Grid(NamedTuple):
    """Cells that one command plans: more replicates of the judged fractions, which carry the verdicts, than of others.

    Percents are in ascending order.
    """

    percents: tuple[int, ...]
    inits: tuple[Init, ...]
    n_replicates: int  # of the judged fractions
    judged: tuple[int, ...]
    n_curve_replicates: int  # of the other fractions, which only draw the curves

    def has(self, cell: Cell) -> bool:
        is_of_it = cell.percent in self.percents and cell.init in self.inits
        return is_of_it and cell.replicate < self._n_replicates_at(cell.percent)

    def _n_replicates_at(self, percent: int) -> int:
        return self.n_replicates if percent in self.judged else min(self.n_curve_replicates, self.n_replicates)

    def cells(self) -> list[Cell]:
        """List the cells replicate by replicate, with the inits of a fraction side by side.

        Fractions run coarse to fine, so that the curves take shape early. The last replicate runs its longest cells
        first, so that no worker is left alone with a long cell at the end.
        """
        cells, last = list[Cell](), self.n_replicates - 1
        for i in range(self.n_replicates):
            order = coarse_to_fine(percent for percent in self.percents if i < self._n_replicates_at(percent))
            if i == last:  # if it is the only one, both ends still come first, so that early figures span the range
                n_first = 2 if i == 0 else 0
                order[n_first:] = sorted(order[n_first:], reverse=True)
            cells += [Cell(percent, init, i) for percent in order for init in self.inits]
        return cells


def by_fraction(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Group cells by fraction, in order of first appearance; each group is sorted by replicate."""
    by_replicate = sorted(cells, key=lambda cell: cell.replicate)
    percents = dict.fromkeys(cell.percent for cell in cells)
    return [tuple(cell for cell in by_replicate if cell.percent == percent) for percent in percents]


def coarse_to_fine(percents: Iterable[int]) -> list[int]:
    """Order percents: largest, smallest, then the middles of ever smaller intervals (100, 5, 50, 25, 75 ...)."""
    ordered = sorted(percents)
    order = [ordered[-1], *ordered[:1]] if len(ordered) > 1 else ordered[:]
    parts = [(0, len(ordered) - 1)]
    while parts:
        low, high = parts.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(ordered[middle])
            parts += [(low, middle), (middle, high)]
    return order
