"""The benchmark's measurements as a table, as JSON and as a run."""

import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fmnist_transfer.store.roles import BENCHMARK, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.workers.run import available_cores

# Unit, goal and comment of each measurement, by its name up to a comma.
KINDS = {
    "naive_images_per_s": ("images/s", "", "notebook's loop, float32"),
    "naive_bf16_images_per_s": ("images/s", "", "notebook's loop, autocast"),
    "ours_images_per_s": ("images/s", "", "all workers unless said"),
    "ratio_vs_naive": ("times", ">= 3.5; >= 20 on a GPU", "to the faster notebook's loop"),
    "fraction_of_limit": ("", ">= 0.85 in float32", "of the matrix product"),
    "worker_scaling": ("times", ">= 0.95 per worker", "images/s of all workers to one"),
    "default_images_per_s": ("images/s", "", "hand-made network and recipe"),
    "default_fraction_of_limit": ("", ">= 0.6 in float32, or", ""),
    "default_bf16_speedup": ("times", ">= 1.5", "to float32"),
    "reference_images_per_s": ("images/s", "", "reference network and recipe"),
    "reference_fraction_of_limit": ("", "", ""),
    "matrix product": ("GFLOP/s", "", "all workers"),
    "validation accuracy": ("", "ours as naive", ""),
    "seconds to 93.33 %": ("s", "", "naive: extrapolated, reference recipe; ours: one worker, a tuned recipe"),
    "time_to_reference_ratio": ("", "<= 0.02", "ours to naive"),
}
COLUMNS = ["name", "median", "min", "max", "n", "unit", "goal", "comment"]


@dataclass
class Measurements:
    lines: list[dict[str, Any]] = field(default_factory=list)  # name, unit, spread, goal (in words), comment

    def add(self, name: str, values: Sequence[float]) -> None:
        """Add a repeated measurement of a kind of `KINDS`; after a comma the name may say more."""
        n, median, low, high = len(values), statistics.median(values), min(values), max(values)
        unit, goal, comment = KINDS[name.partition(",")[0]]
        spread = {"median": median, "min": low, "max": high, "n": n}
        self.lines.append({"name": name, "unit": unit, "spread": spread, "goal": goal, "comment": comment})
        say(f"{name}: {median:.4g} {unit} ({low:.4g} to {high:.4g}, n = {n})")

    def to_json(self, device: str) -> dict[str, Any]:
        """Return what `--json` writes. Names without a space are keys; null if not measured."""
        spreads = {line["name"]: line["spread"] for line in self.lines}
        by_name = {name: spreads.get(name) for name in KINDS if " " not in name}
        return by_name | {"device": device, "lines": self.lines}

    def rows(self) -> list[list[str]]:
        """Return the texts of each line in the order of `COLUMNS`."""
        return [
            [line["name"], *(f"{x:.4g}" for x in line["spread"].values()), line["unit"], line["goal"], line["comment"]]
            for line in self.lines
        ]

    def log(self, store: Store, params: dict[str, Any]) -> None:
        """Log the medians as metrics, under names that MLflow accepts, and the table as `benchmark.csv`."""
        name = f"benchmark on {params['device']}"
        run_id = store.start(BENCHMARK, name, params=params, tags={"role": Role.BENCHMARK})
        with store.ending(run_id):
            medians = {line["name"]: line["spread"]["median"] for line in self.lines}
            metrics = [(name.replace("%", "percent").replace(",", ""), median, 0) for name, median in medians.items()]
            store.log(run_id, metrics=metrics)
            table = pd.DataFrame(self.rows(), columns=COLUMNS)
            store.client.log_text(run_id, table.to_csv(index=False, lineterminator="\n"), "benchmark.csv")
        say(f"Logged as run {run_id} of experiment {BENCHMARK}")


def describe(device: str) -> str:
    """Name the processor and the version of torch."""
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", cpus.read_text(), re.MULTILINE) if cpus.exists() else []
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else [*names, platform.machine()][0]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device}: {name}, {available_cores()} cores, {capability}, torch {torch.__version__}"
