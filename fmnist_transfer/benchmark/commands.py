"""Time whole commands, each a process on a temporary store: a sweep's overhead, and finding finished work."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_transfer.benchmark.measurements import RESUME, Measurements
from fmnist_transfer.benchmark.tasks import STOPPED
from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import PROJECT
from fmnist_transfer.store.registry import register, set_best
from fmnist_transfer.store.roles import TRANSFER, TUNING, Role
from fmnist_transfer.terminal.output import say
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE
from fmnist_transfer.workers.stop import StopSignal

JUDGED = (5, 10, 25, 50, 100)
# Cells of a default sweep by percent: two inits, eight replicates of judged fractions and two of the others.
N_CELLS = {percent: 2 * (8 if percent in JUDGED else 2) for percent in range(5, 101, 5)}
SMALL_SWEEP = ("--fractions", "1", "20", "--replicates", "2", "--epochs", "1")  # eight cells
N_OTHER_RUNS = 100


@dataclass(frozen=True)
class ScratchStore:
    folder: Path
    data_dir: Path
    n_workers: int
    device: str
    stop: StopSignal

    def sweep(self) -> tuple[dict[str, Any], float]:
        """Run `python -m sweeps.transfer` on eight small cells; return its JSON and seconds. Raises UserError."""
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
        return json.loads(file.read_text()), wall

    def measure(self, parts: set[str], into: Measurements) -> None:
        """Measure a small sweep, compute the shares of a default one, and time finding finished work."""
        say("Making a store for the commands ...")
        store = open_store(str(self.folder / "mlflow.db"))
        run_id = store.start(TUNING, "benchmark")
        state = fresh_network(HAND_MADE_SPEC, Streams(0)).state_dict()
        model = TrainedModel(HAND_MADE_SPEC, HAND_MADE_RECIPE, DEFAULT_SPLIT, state, facts={})
        set_best(store, register(store, run_id, "cnn2", model, tags={}, description="untrained, for a benchmark"))
        store.end(run_id)
        result, wall_seconds = self.sweep()
        if "outside" in parts:
            to_first_step = wall_seconds - result["seconds"] + result["first_step_seconds"]
            into.add("seconds to the first step", [to_first_step])
            outside, evaluation = predicted_percents(result, wall_seconds, self.n_workers)
            into.add("outside_training_percent", [outside])
            into.add("evaluation_percent", [evaluation])
        if "resume" in parts:
            say(f"filling the store with {N_OTHER_RUNS} runs ...")
            for number in range(N_OTHER_RUNS):
                self.stop.raise_if_set(STOPPED)
                tags = {"role": Role.CELL, "parent": "another sweep"}
                store.end(store.start(TRANSFER, f"other {number}", tags=tags))
            seconds = [self.sweep()[0]["stages"]["resume check"] for _ in range(2)]
            into.add(f"{RESUME}{N_OTHER_RUNS} runs", seconds)


def predicted_percents(small: dict[str, Any], wall_seconds: float, n_workers: int) -> tuple[float, float]:
    """Compute the shares of a default sweep's time outside training and in evaluation from a small one of one epoch.

    The small sweep's idle time gives the cost per cell, slightly too high: some workers are idle at its end.
    """
    cells, cells_seconds = small["cells"], small["stages"]["cells"]
    keys = ("seconds", "train_seconds", "val_seconds")
    seconds, train_seconds, val_seconds = (statistics.mean(cell["cost"][key] for cell in cells) for key in keys)
    n_largest = max(cell["n_train"] for cell in cells)
    largest = [cell["cost"]["train_seconds"] for cell in cells if cell["n_train"] == n_largest]
    image_seconds = statistics.median(largest) / n_largest
    waited = max(0.0, n_workers * cells_seconds / len(cells) - seconds)
    fixed = wall_seconds - cells_seconds
    n_cells = sum(N_CELLS.values())
    images = sum(250 * percent * n for percent, n in N_CELLS.items())
    training = HAND_MADE_RECIPE.epochs * images * image_seconds
    evaluation = n_cells * (HAND_MADE_RECIPE.epochs * val_seconds + seconds - train_seconds - val_seconds)
    available = training + evaluation + n_cells * waited + n_workers * fixed
    return 100 * (1 - (training + evaluation) / available), 100 * evaluation / available
