"""Time whole commands: a sweep's wall time outside training, and the time to find finished work.

The commands run in separate processes, as a user runs them, on a temporary store.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_transfer.benchmark.loop import STOPPED
from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import PROJECT
from fmnist_transfer.store.registry import register, set_best
from fmnist_transfer.store.roles import TRANSFER, TUNING, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE
from fmnist_transfer.workers.stop import StopSignal

DEFAULT_PERCENTS = tuple(range(5, 101, 5))
DEFAULT_CELLS_PER_FRACTION = 6  # two inits, three replicates
IMAGES_PER_PERCENT = 250
SMALL_SWEEP = ("--fractions", "1", "20", "--replicates", "2", "--epochs", "1")  # eight cells
N_OTHER_RUNS, N_RESUMES = 100, 2


class SweepTimes(NamedTuple):
    """A sweep's result and the wall time of its process."""

    wall_seconds: float
    result: dict[str, Any]

    @property
    def first_step_seconds(self) -> float:
        """Seconds from the command to the first training step, interpreter start included."""
        outside = self.wall_seconds - float(self.result["seconds"])
        return outside + float(self.result["first_step_seconds"])

    def mean_cell_seconds(self, key: str) -> float:
        return statistics.mean(float(cell["cost"][key]) for cell in self.result["cells"])


class Shares(NamedTuple):
    """Parts of a sweep's wall time on all workers, in percent."""

    outside: float
    evaluation: float


@dataclass(frozen=True)
class ScratchStore:
    """A temporary store with a registered model, for timing commands."""

    folder: Path
    data_dir: Path
    n_workers: int
    device: str
    stop: StopSignal

    def prepare(self) -> Store:
        """Make the store and register an untrained network as `models:/cnn2/best`."""
        store = open_store(str(self.folder / "mlflow.db"))
        run_id = store.start(TUNING, "benchmark")
        state = fresh_network(HAND_MADE_SPEC, Streams(0)).state_dict()
        model = TrainedModel(HAND_MADE_SPEC, HAND_MADE_RECIPE, DEFAULT_SPLIT, state, facts={})
        set_best(store, register(store, run_id, "cnn2", model, tags={}, description="untrained, for a benchmark"))
        store.end(run_id)
        return store

    def sweep(self) -> SweepTimes:
        """Run `python -m sweeps.transfer` on eight small cells. Raises UserError if it fails."""
        file = self.folder / "sweep.json"
        command = [sys.executable, "-m", "sweeps.transfer", "--model-uri", "models:/cnn2/best", *SMALL_SWEEP]
        command += ["--tracking-uri", str(self.folder / "mlflow.db"), "--data-dir", str(self.data_dir)]
        command += ["--workers", str(self.n_workers), "--device", self.device, "--json", str(file)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
        self.stop.raise_if_set(STOPPED)
        if done.returncode:
            raise UserError(f"sweeps.transfer ended with {done.returncode}: {done.stderr.strip()}")
        return SweepTimes(wall, json.loads(file.read_text()))


def measure_commands(scratch: ScratchStore, parts: set[str], into: Measurements) -> None:
    """Measure a small sweep, compute the shares of a default one, and time finding finished work."""
    say("Making a store for the commands ...")
    store = scratch.prepare()
    times = scratch.sweep()
    if "outside" in parts:
        into.add("seconds to the first step", "s", [times.first_step_seconds], "<= 10", "of a sweep")
        shares = predicted_shares(times, scratch.n_workers)
        comment = "default sweep, computed from 8 cells"
        into.add("outside_training_percent", "%", [shares.outside], "<= 5", comment)
        into.add("evaluation_percent", "%", [shares.evaluation], comment=comment)
    if "resume" in parts:
        say(f"filling the store with {N_OTHER_RUNS} runs ...")
        for number in range(N_OTHER_RUNS):
            scratch.stop.raise_if_set(STOPPED)
            tags = {"role": Role.CELL, "parent": "another sweep"}
            store.end(store.start(TRANSFER, f"other {number}", tags=tags))
        seconds = [scratch.sweep().result["stages"]["resume check"] for _ in range(N_RESUMES)]
        comment = "to find 8 finished cells beside so many runs of other sweeps"
        name = f"resume_seconds, {N_OTHER_RUNS} runs"
        into.resume_seconds[N_OTHER_RUNS] = into.add(name, "s", seconds, comment=comment)


def predicted_shares(small: SweepTimes, n_workers: int) -> Shares:
    """Compute the shares of the default sweep from a small one of one epoch.

    The small sweep's cells give the costs per training image and per evaluation, its other stages the fixed costs, and
    its workers' idle time the cost per cell: slightly too high, as it includes the first drawing of figures and the
    end, when some workers have no cell left.
    """
    cells = small.result["cells"]
    seconds, train_seconds, val_seconds = map(small.mean_cell_seconds, ("seconds", "train_seconds", "val_seconds"))
    n_largest = max(cell["n_train"] for cell in cells)
    largest = [cell["cost"]["train_seconds"] for cell in cells if cell["n_train"] == n_largest]
    image_seconds = statistics.median(largest) / n_largest
    waited = max(0.0, n_workers * small.result["stages"]["cells"] / len(cells) - seconds)
    fixed = small.wall_seconds - small.result["stages"]["cells"]
    n_cells = DEFAULT_CELLS_PER_FRACTION * len(DEFAULT_PERCENTS)
    images = DEFAULT_CELLS_PER_FRACTION * IMAGES_PER_PERCENT * sum(DEFAULT_PERCENTS)
    training = HAND_MADE_RECIPE.epochs * images * image_seconds
    evaluation = n_cells * (HAND_MADE_RECIPE.epochs * val_seconds + seconds - train_seconds - val_seconds)
    available = training + evaluation + n_cells * waited + n_workers * fixed
    return Shares(100 * (1 - (training + evaluation) / available), 100 * evaluation / available)
