"""The benchmark's measurements as a table, JSON and CSV."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from fmnist_transfer.terminal.output import print_table, say

JSON_NAMES = (  # measurements that `--json` writes by name; null if not taken
    *("naive_images_per_s", "ours_images_per_s", "ratio_vs_naive", "fraction_of_limit", "worker_scaling"),
    *("time_to_reference_ratio", "outside_training_percent"),
)


class Spread(NamedTuple):
    """Median, smallest and largest of n repeated measurements."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.min, "max": self.max}


@dataclass(frozen=True)
class Line:
    """One line of the table. `goal` is its target, in words."""

    name: str
    unit: str
    spread: Spread
    goal: str = ""
    comment: str = ""

    def cells(self) -> list[str]:
        return [
            self.name,
            *(f"{x:.4g}" for x in self.spread[:3]),
            str(self.spread.n),
            self.unit,
            self.goal,
            self.comment,
        ]


@dataclass
class Measurements:
    lines: list[Line] = field(default_factory=list)
    resume_seconds: dict[int, Spread] = field(default_factory=dict)
    """Number of logged runs -> seconds."""

    def add(self, name: str, unit: str, values: Sequence[float], goal: str = "", comment: str = "") -> Spread:
        spread = Spread.of(values)
        self.lines.append(Line(name, unit, spread, goal, comment))
        say(f"{name}: {spread.median:.4g} {unit} ({spread.min:.4g} to {spread.max:.4g}, n = {spread.n})")
        return spread

    def to_json(self, device: str) -> dict[str, Any]:
        """Return the result that `--json` writes; parts that were not measured are null."""
        spreads = {line.name: line.spread.to_dict() for line in self.lines}
        resume = {str(n): spread.to_dict() for n, spread in self.resume_seconds.items()}
        largest = max(self.resume_seconds, default=None)
        return {name: spreads.get(name) for name in JSON_NAMES} | {
            "resume_seconds": None if largest is None else resume[str(largest)] | {"by_runs": resume},
            "device": device,
            "lines": [dataclasses.asdict(line) | {"spread": line.spread._asdict()} for line in self.lines],
        }

    def to_csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "median", "min", "max", "n", "unit", "goal", "comment"])
        writer.writerows(line.cells() for line in self.lines)
        return stream.getvalue()

    def print_table(self) -> None:
        say("")
        print_table(["", "median", "min", "max", "n", "unit", "goal", ""], [line.cells() for line in self.lines])

    def metrics(self) -> list[tuple[str, float, int]]:
        """Return medians under names that MLflow accepts: `resume_seconds, 100 runs` -> `resume_seconds 100 runs`."""

        def name_of(line: Line) -> str:
            return "".join(c for c in line.name.replace("%", "percent") if c.isalnum() or c in "_-. /")

        return [(name_of(line), line.spread.median, 0) for line in self.lines]
