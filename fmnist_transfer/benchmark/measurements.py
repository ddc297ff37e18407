"""The benchmark's measurements as a table, JSON and CSV."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fmnist_transfer.terminal.output import print_table, say

# Unit, goal and comment of each measurement, by its name up to a comma.
KINDS = {
    "naive_images_per_s": ("images/s", "", "notebook's loop, float32"),
    "naive_bf16_images_per_s": ("images/s", "", "notebook's loop, autocast"),
    "ours_images_per_s": ("images/s", "", "all workers unless said"),
    "ratio_vs_naive": ("times", ">= 3.5; >= 20 on a GPU", "to the faster notebook's loop"),
    "fraction_of_limit": ("", ">= 0.85 in float32", "of the matrix product"),
    "worker_scaling": ("times", ">= 0.95 per worker", "all workers to one"),
    "default_images_per_s": ("images/s", "", "hand-made network and recipe"),
    "default_fraction_of_limit": ("", ">= 0.6 in float32, or", ""),
    "default_bf16_speedup": ("times", ">= 1.5", "to float32"),
    "reference_images_per_s": ("images/s", "", "reference network and recipe"),
    "reference_fraction_of_limit": ("", "", ""),
    "matrix product": ("GFLOP/s", "", "all workers"),
    "validation accuracy": ("", "ours as naive", ""),
    "stacked_speedup": ("times", ">= 2 on a GPU", "images/s of networks as one computation to one alone's"),
    "seconds to 93.33 %": ("s", "", "naive: extrapolated, reference recipe; ours: one worker, a tuned recipe"),
    "time_to_reference_ratio": ("", "<= 0.02", "ours to naive"),
    "seconds to the first step": ("s", "<= 10", "of a sweep"),
    "outside_training_percent": ("%", "<= 5", "default sweep, computed from 8 cells"),
    "evaluation_percent": ("%", "", "default sweep, computed from 8 cells"),
    "resume_seconds": ("s", "", "to find 8 finished cells beside so many runs of other sweeps"),
}
# Measurements that `--json` writes by name; null if not taken. `resume_seconds` is added.
JSON_NAMES = [name for name in KINDS if " " not in name and name not in ("evaluation_percent", "resume_seconds")]
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

    def add(self, name: str, values: Sequence[float]) -> None:
        """Add a measurement of a kind of `KINDS`; after a comma the name may say more."""
        n, median, low, high = len(values), statistics.median(values), min(values), max(values)
        unit, goal, comment = KINDS[name.partition(",")[0]]
        self.lines.append(Line(name, unit, {"median": median, "min": low, "max": high, "n": n}, goal, comment))
        say(f"{name}: {median:.4g} {unit} ({low:.4g} to {high:.4g}, n = {n})")

    def to_json(self, device: str) -> dict[str, Any]:
        """Return the result that `--json` writes."""
        spreads = {line.name: line.spread for line in self.lines}
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
