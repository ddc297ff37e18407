"""Train the registered network on fractions of FMNIST-1, from pretrained and from random weights.

    python -m sweeps.transfer --model-uri models:/cnn2/best        # run it again to resume

Writes one MLflow run per fraction x init x replicate; their parent run gets curves, table and verdicts.
"""

import functools
import sys

from fmnist_transfer.flags import machine_for
from fmnist_transfer.terminal.command import run_command
from fmnist_transfer.terminal.output import say, write_json
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.workers.stop import StopSignal
from sweeps.grid import N_TUNING
from sweeps.settings import TransferSettings


def main(settings: TransferSettings) -> int:
    """Run the sweep. Returns the exit status: 0, or 1 if a cell failed."""
    stopwatch = Stopwatch()
    n_tasks = len(settings.fractions) if settings.stack else len(settings.grid.cells())
    n_tuning = N_TUNING * len(settings.inits) if settings.recipe == "tuned" else 0
    n_most = max(n_tasks, n_tuning, settings.pretrain_replicates)
    with StopSignal() as stop, machine_for(settings, n_most, stop) as machine:
        from sweeps.steps import FIRST_STEP, sweep

        result = sweep(settings, machine, stopwatch)
    say(f"The sweep took {stopwatch}")
    n_failed = result.pop("n_failed")
    if settings.json:
        times = {"seconds": stopwatch.seconds, "stages": stopwatch.stages, FIRST_STEP: stopwatch.marks.get(FIRST_STEP)}
        write_json(settings.json, result | times)
    return 1 if n_failed else 0


command = functools.partial(run_command, TransferSettings, main, "sweeps.transfer")


if __name__ == "__main__":
    sys.exit(command())
