"""What a sweep's wall time holds besides training, and how long finding finished work takes: the commands themselves.

They run as a user runs them, in processes of their own, on a store that is made for it and thrown away.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_transfer import registry, tracking
from fmnist_transfer.console import say
from fmnist_transfer.database import PROJECT
from fmnist_transfer.errors import UserError
from fmnist_transfer.model import CNN2Spec, fresh_network
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.seeding import Streams
from fmnist_transfer.speed import STOPPED
from fmnist_transfer.split import parse_split
from fmnist_transfer.stopping import StopSignal
from fmnist_transfer.ui import TRANSFER, TUNING

# What the search starts from by default: `tuning.space.FIRST_TRIAL` at 4 MFLOPs.
DEFAULT_SPEC = CNN2Spec(channels=(8, 20), convs_per_block=2, fc1=128, fc2=64, fc_dropout=0.3)
DEFAULT_RECIPE = Recipe(
    learning_rate=5e-3, weight_decay=5e-2, label_smoothing=0.05, flip=True, batch_size=128, epochs=10
)
DEFAULT_PERCENTS = tuple(range(5, 101, 5))
DEFAULT_CELLS_A_FRACTION = 6  # two inits, three replicates
IMAGES_A_PERCENT = 250


class SweepTimes(NamedTuple):
    """A sweep's result, and its wall time from the start of the process to its end."""

    wall_seconds: float
    result: dict[str, Any]

    @property
    def first_step_seconds(self) -> float:
        """From the command to the first training step, with the start of the interpreter."""
        outside = self.wall_seconds - float(self.result["seconds"])
        return outside + float(self.result["first_step_seconds"])

    def cell_seconds(self, key: str = "seconds") -> list[float]:
        return [float(cell["cost"][key]) for cell in self.result["cells"]]


class Shares(NamedTuple):
    """Of a sweep's wall time on all workers, in percent."""

    outside: float
    evaluation: float


@dataclass(frozen=True)
class ScratchStore:
    """A store to throw away, with a registered model, on which commands are timed."""

    folder: Path
    data_dir: Path
    n_workers: int
    device: str
    stop: StopSignal

    def prepare(self) -> tracking.Store:
        """Make the store and register a network as `models:/cnn2/best`."""
        store = tracking.open_store(str(self.folder / "mlflow.db"))
        run_id = store.start(TUNING, "benchmark")
        state = fresh_network(DEFAULT_SPEC, Streams(0)).state_dict()
        model = registry.TrainedModel(DEFAULT_SPEC, DEFAULT_RECIPE, parse_split("0-4/5-9"), state, facts={})
        version = registry.register(store, run_id, "cnn2", model, tags={}, description="untrained, for a benchmark")
        registry.set_best(store, version)
        store.end(run_id)
        return store

    def sweep(self, *flags: str) -> SweepTimes:
        """Run `python -m sweeps.transfer` with these flags."""
        file = self.folder / "sweep.json"
        command = [sys.executable, "-m", "sweeps.transfer", "--model-uri", "models:/cnn2/best"]
        where = ["--tracking-uri", str(self.folder / "mlflow.db"), "--data-dir", str(self.data_dir)]
        machine = ["--workers", str(self.n_workers), "--device", self.device, "--json", str(file)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *where, *machine, *flags], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - start
        self.stop.raise_if_set(STOPPED)
        if done.returncode:
            raise UserError(f"sweeps.transfer ended with {done.returncode}: {done.stderr.strip()}")
        return SweepTimes(wall, json.loads(file.read_text()))

    def resume_seconds(
        self, store: tracking.Store, flags: Sequence[str], n_runs: Sequence[int], n_repeats: int
    ) -> Iterator[tuple[int, list[float]]]:
        """Seconds in which a finished sweep finds its cells beside so many runs of others, for each of `n_runs`."""
        there = 0
        for n in n_runs:
            say(f"filling the store to {n} runs ...")
            while there < n:
                self.stop.raise_if_set(STOPPED)
                tags = {"role": "cell", "parent": "another sweep"}
                store.end(store.start(TRANSFER, f"other {there}", tags=tags))
                there += 1
            yield n, [self.sweep(*flags).result["stages"]["resume check"] for _ in range(n_repeats)]


def shares(times: SweepTimes, n_workers: int) -> Shares:
    """Measured: what a sweep's workers did besides training."""
    available = n_workers * times.wall_seconds
    trained = sum(times.cell_seconds("train_seconds"))
    all_seconds = sum(times.cell_seconds())
    return Shares(100 * (1 - all_seconds / available), 100 * (all_seconds - trained) / available)


def predicted_shares(small: SweepTimes, n_workers: int) -> Shares:
    """Computed for the default sweep, from a small one of one epoch.

    Each cell of the small sweep gives the cost of an image trained and of an evaluation; the wall time of its stages
    gives the fixed costs, and what its workers waited for gives the cost of a cell: a little much, for the first
    drawing and the end, when some have nothing left to do, count in it.
    """
    cells = small.result["cells"]
    seconds, train_seconds, val_seconds = (
        sum(small.cell_seconds(key)) / len(cells) for key in ("seconds", "train_seconds", "val_seconds")
    )
    n_largest = max(cell["n_train"] for cell in cells)
    largest = [cell["cost"]["train_seconds"] for cell in cells if cell["n_train"] == n_largest]
    image_seconds = statistics.median(largest) / n_largest
    waited = max(0.0, n_workers * small.result["stages"]["cells"] / len(cells) - seconds)
    fixed = small.wall_seconds - small.result["stages"]["cells"]
    n_cells = DEFAULT_CELLS_A_FRACTION * len(DEFAULT_PERCENTS)
    images = DEFAULT_CELLS_A_FRACTION * IMAGES_A_PERCENT * sum(DEFAULT_PERCENTS)
    training = DEFAULT_RECIPE.epochs * images * image_seconds
    evaluation = n_cells * (DEFAULT_RECIPE.epochs * val_seconds + seconds - train_seconds - val_seconds)
    available = training + evaluation + n_cells * waited + n_workers * fixed
    return Shares(100 * (1 - (training + evaluation) / available), 100 * evaluation / available)
