"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

    python -m tuning.search                # resumable: the same command continues
    python -m tuning.search --reference    # train the original report's network instead, as `cnn2-reference`
    python -m tuning.search --split even/odd --like models:/cnn2/best    # a registered configuration on another half

Reads the data; writes an Optuna study, MLflow runs and a registered model. Selection uses validation scores only.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from fmnist_transfer.data.split import parse_split
from fmnist_transfer.flags import ONE_TIME, device_of_tasks, workers_for
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import command_line, run_command
from fmnist_transfer.terminal.output import print_pairs, say, write_json
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from tuning.settings import SearchSettings


def main(settings: SearchSettings) -> int:
    """Run the search. Returns the exit status: 0, or 1 if a trial or a re-training failed."""
    stopwatch = Stopwatch()
    say("Loading torch, mlflow and optuna ...")
    with StopSignal() as stop:
        if settings.dry_run:
            from tuning.steps import dry_run

            result = dry_run(settings)
        else:
            device = device_of_tasks(settings)
            n_tasks = max(settings.trials, settings.top * settings.n_seeds) if settings.is_search else settings.n_seeds
            with workers_for(settings, device, n_tasks, stop) as workers:
                result = search(settings, device, workers, stopwatch)
    say(f"The search took {stopwatch}")
    failed = result.pop("n_failed")
    if settings.json:
        write_json(settings.json, result | {"seconds": stopwatch.seconds, "stages": stopwatch.stages})
    return 1 if failed else 0


def search(settings: SearchSettings, device: str, workers: Workers, stopwatch: Stopwatch) -> dict[str, Any]:
    """Search, or train one network without a search. Returns what `--json` writes, and `n_failed`."""
    from fmnist_transfer.data.examples import load_half
    from fmnist_transfer.data.files import default_data_dir
    from fmnist_transfer.store.opening import open_for_work
    from fmnist_transfer.store.roles import TUNING
    from tuning.steps import SearchContext, train_fixed, tune

    split = parse_split(settings.split)
    half = workers.share(load_half(settings.data_dir or default_data_dir(), split.source))
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    store = open_for_work(settings.tracking_uri, TUNING, retry, mend_copy=settings.mend_copy)
    context = SearchContext(settings, store, half, split, device, workers, stopwatch)
    result = tune(context) if settings.is_search else train_fixed(context)
    stopwatch.lap("registering")
    uri = result["model_uri"]
    model = uri.rpartition("/")[0] + "/best" if result["promoted"] else uri
    place = f" --tracking-uri {shlex.quote(settings.tracking_uri)}" if settings.tracking_uri else ""
    commands = {
        "transfer it": f"python -m sweeps.transfer --model-uri {model}{place}",
        "in a browser": f"{store.show_command}  # trials, models",
    }
    if settings.is_search:
        more = command_line("tuning.search", settings, **ONE_TIME | {"trials": 2 * settings.trials})
        commands["search on"] = f"{more}  # adds trials to this study"
    print_pairs("Look next", commands)
    return result


def command(args: Sequence[str] | None = None) -> int:
    return run_command(SearchSettings, main, "tuning.search", args)


if __name__ == "__main__":
    sys.exit(command())
