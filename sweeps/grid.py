"""The plan of a sweep as plain data: cells, and the order in which they run. Imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Init = Literal["pretrained", "random"]
INITS: tuple[Init, ...] = get_args(Init)


@dataclass(frozen=True, order=True)
class Cell:
    """One training run: `percent` of the target's training images, a way to start, a set of random draws."""

    percent: int
    init: Init
    replicate: int

    @property
    def name(self) -> str:
        return f"{self.init} {self.percent:03d}% r{self.replicate}"


def plan_cells(percents: Sequence[int], inits: Sequence[Init], n_replicates: int) -> list[Cell]:
    """Breadth first: a replicate of every cell before the next one, the inits of a pair together.

    Coarse to fine, so that the curves are there early; in the last replicate the longest cells first, so that no worker
    is left alone with a long one at the end.
    """
    longest_first = sorted(percents, reverse=True)
    if n_replicates == 1:  # both ends first, so that there is something to see
        longest_first = [*longest_first[:1], *longest_first[1:][-1:], *longest_first[1:-1]]
    orders = [coarse_to_fine(percents)] * (n_replicates - 1) + [longest_first]
    return [
        Cell(percent, init, replicate) for replicate, order in enumerate(orders) for percent in order for init in inits
    ]


def by_fraction(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """Cells of the same fraction together, replicate by replicate; the fractions in the order of their first cells."""
    groups: dict[int, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.percent, []).append(cell)
    return [tuple(sorted(group, key=lambda cell: cell.replicate)) for group in groups.values()]


def coarse_to_fine(percents: Iterable[int]) -> list[int]:
    """Largest, smallest, then the middles of ever smaller parts: 100, 5, 50, 25, 75 ..."""
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
