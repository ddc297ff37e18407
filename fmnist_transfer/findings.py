"""What the benchmark found, as a table, JSON, CSV and a picture."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fmnist_transfer.console import print_table, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated measurements."""

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
    """One line of the table. `goal`: what it should be, in words."""

    name: str
    unit: str
    spread: Spread
    goal: str = ""
    comment: str = ""


@dataclass
class Findings:
    """What was measured so far."""

    lines: list[Line] = field(default_factory=list)
    cells_per_hour: dict[int, float] = field(default_factory=dict)
    """Number of workers -> median."""
    resume_seconds: dict[int, Spread] = field(default_factory=dict)
    """Number of logged runs -> seconds."""

    def add(self, name: str, unit: str, values: Sequence[float], goal: str = "", comment: str = "") -> None:
        self.lines.append(Line(name, unit, Spread.of(values), goal, comment))
        spread = self.lines[-1].spread
        say(f"{name}: {spread.median:.4g} {unit} ({spread.min:.4g} to {spread.max:.4g}, n = {spread.n})")

    def spread(self, name: str) -> dict[str, float] | None:
        """Of the line of that name, None if it was not measured."""
        return next((line.spread.to_dict() for line in self.lines if line.name == name), None)


def to_json(findings: Findings, device: str) -> dict[str, Any]:
    """The result as `--json` writes it; a part that was not measured is null."""
    names = ("naive_images_per_s", "ours_images_per_s", "ratio_vs_naive", "fraction_of_limit", "worker_scaling")
    more = ("time_to_reference_ratio", "outside_training_percent")
    resume = {str(n): spread.to_dict() for n, spread in findings.resume_seconds.items()}
    largest = max(findings.resume_seconds, default=None)
    result: dict[str, Any] = {name: findings.spread(name) for name in names + more}
    result["resume_seconds"] = None if largest is None else resume[str(largest)] | {"by_runs": resume}
    result["device"] = device
    result["lines"] = [dataclasses.asdict(line) for line in findings.lines]
    return result


def print_lines(findings: Findings) -> None:
    """The table."""
    say("")
    rows = [
        [line.name, f"{s.median:.4g}", f"{s.min:.4g}", f"{s.max:.4g}", str(s.n), line.unit, line.goal, line.comment]
        for line in findings.lines
        for s in (line.spread,)
    ]
    print_table(["", "median", "min", "max", "n", "unit", "goal", ""], rows)


def to_csv(findings: Findings) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "median", "min", "max", "n", "unit", "goal", "comment"])
    for line in findings.lines:
        s = line.spread
        numbers = [f"{value:.6g}" for value in (s.median, s.min, s.max)]
        writer.writerow([line.name, *numbers, s.n, line.unit, line.goal, line.comment])
    return stream.getvalue()


def picture(findings: Findings, title: str) -> "Figure":
    """Panels of what was measured: images a second, cells per hour by workers, seconds to resume by runs."""
    import matplotlib.pyplot as plt

    images = [line for line in findings.lines if line.unit == "images/s"]
    measured = {_draw_images: images, _draw_scaling: findings.cells_per_hour, _draw_resume: findings.resume_seconds}
    panels = [draw for draw, there in measured.items() if there]
    n = max(1, len(panels))
    figure, axes = plt.subplots(1, n, figsize=(4.5 * n, 3.6), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=9)
    for draw, axis in zip(panels, axes[0], strict=False):
        draw(findings, axis)
        axis.set_ylim(0, None)
    return figure


def _draw_images(findings: Findings, axis: "Axes") -> None:
    spreads = [line.spread for line in findings.lines if line.unit == "images/s"]
    labels = ["notebook", "one worker", "all workers"][: len(spreads)]
    errors = [[s.median - s.min for s in spreads], [s.max - s.median for s in spreads]]
    axis.bar(labels, [s.median for s in spreads], yerr=errors, capsize=4)
    if fraction := findings.spread("fraction_of_limit"):
        limit = spreads[-1].median / fraction["median"]
        axis.axhline(limit, color="black", linestyle="--", label="matrix-product limit")
        axis.legend(loc=(0.02, 0.75))
    axis.set_ylabel("training images per second")


def _draw_scaling(findings: Findings, axis: "Axes") -> None:
    counts, per_hour = list(findings.cells_per_hour), list(findings.cells_per_hour.values())
    axis.plot(counts, per_hour, "o-", label="measured")
    axis.plot(counts, [per_hour[0] * n / counts[0] for n in counts], "k--", label="ideal")
    axis.set(xlabel="workers", ylabel="cells per hour", xticks=counts)
    axis.legend()


def _draw_resume(findings: Findings, axis: "Axes") -> None:
    runs = list(findings.resume_seconds)
    axis.plot(runs, [findings.resume_seconds[n].median for n in runs], "o-")
    axis.set(xlabel="runs in the store", ylabel="seconds to find what is done", xscale="log")


def metric_name(name: str) -> str:
    """What MLflow takes: `resume_seconds, 100 runs` -> `resume_seconds 100 runs`."""
    return "".join(c for c in name.replace("%", "percent") if c.isalnum() or c in "_-. /")
