"""The benchmark's measurements as a table, JSON and CSV."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fmnist_transfer.terminal.output import print_table, say

# Measurements that `--json` writes by name; null if not taken.
JSON_NAMES = ["naive_images_per_s", "ours_images_per_s", "ratio_vs_naive", "fraction_of_limit", "worker_scaling"]
JSON_NAMES += ["time_to_reference_ratio", "outside_training_percent"]
COLUMNS = ["name", "median", "min", "max", "n", "unit", "goal", "comment"]
RESUME = "resume_seconds, "  # start of a measurement's name, before the number of logged runs


@dataclass(frozen=True)
class Line:
    name: str
    unit: str
    spread: dict[str, float]  # median, min and max of n repeated measurements
    goal: str  # in words
    comment: str

    def cells(self) -> list[str]:
        return [self.name, *(f"{x:.4g}" for x in self.spread.values()), self.unit, self.goal, self.comment]


@dataclass
class Measurements:
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, unit: str, values: Sequence[float], goal: str = "", comment: str = "") -> None:
        n, median, low, high = len(values), statistics.median(values), min(values), max(values)
        self.lines.append(Line(name, unit, {"median": median, "min": low, "max": high, "n": n}, goal, comment))
        say(f"{name}: {median:.4g} {unit} ({low:.4g} to {high:.4g}, n = {n})")

    def to_json(self, device: str) -> dict[str, Any]:
        """Return the result that `--json` writes."""
        spreads = {line.name: {key: line.spread[key] for key in ("median", "min", "max")} for line in self.lines}
        by_runs = {name.split()[1]: spread for name, spread in spreads.items() if name.startswith(RESUME)}
        return {name: spreads.get(name) for name in JSON_NAMES} | {
            "resume_seconds": [*by_runs.values()][-1] | {"by_runs": by_runs} if by_runs else None,
            "device": device,
            "lines": [dataclasses.asdict(line) for line in self.lines],
        }

    def to_csv(self) -> str:
        table = pd.DataFrame([line.cells() for line in self.lines], columns=COLUMNS)
        return table.to_csv(index=False, lineterminator="\n")

    def print_table(self) -> None:
        say("")
        print_table(["", *COLUMNS[1:-1], ""], [line.cells() for line in self.lines])

    def metrics(self) -> list[tuple[str, float, int]]:
        """Return medians under names that MLflow accepts."""
        return [(line.name.replace("%", "percent").replace(",", ""), line.spread["median"], 0) for line in self.lines]
