"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

python -m tuning.search                # resumable: the same command continues
python -m tuning.search --reference    # train the original report's network instead, as `cnn2-reference`
python -m tuning.search --split even/odd --like models:/cnn2/best    # a registered configuration on another half
"""

import functools
import sys

from fmnist_transfer.flags import machine_for
from fmnist_transfer.terminal.command import run_command
from fmnist_transfer.terminal.output import say, write_json
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.workers.stop import StopSignal
from tuning.settings import SearchSettings


def main(settings: SearchSettings) -> int:
    """Run the search. Returns the exit status: 0, or 1 if a trial or a re-training failed."""
    stopwatch = Stopwatch()
    n_tasks = max(settings.trials if settings.is_search else 1, settings.n_seeds)
    with StopSignal() as stop, machine_for(settings, n_tasks, stop) as machine:
        from tuning.steps import dry_run, search

        result = dry_run(settings) if settings.dry_run else search(settings, machine, stopwatch)
    say(f"The search took {stopwatch}")
    failed = result.pop("n_failed")
    if settings.json:
        write_json(settings.json, result | {"seconds": stopwatch.seconds, "stages": stopwatch.stages})
    return 1 if failed else 0


command = functools.partial(run_command, SearchSettings, main, "tuning.search")


if __name__ == "__main__":
    sys.exit(command())
