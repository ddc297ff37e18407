"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

    python -m tuning.search                # resumable: the same command continues
    python -m tuning.search --reference    # train the original report's network instead, as `cnn2-reference`
    python -m tuning.search --split even/odd --like models:/cnn2/best    # a registered configuration on another half

Reads the data; writes an Optuna study, MLflow runs and a registered model. Selection uses validation scores only.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist_transfer.data.split import parse_split
from fmnist_transfer.flags import ONE_TIME, device_of_tasks, workers_for
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import command_line, run_command
from fmnist_transfer.terminal.output import print_pairs, say, write_json
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from tuning.settings import SearchSettings

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store


def main(settings: SearchSettings) -> int:
    """Run the search. Returns the exit status: 0, or 1 if a trial or a re-training failed."""
    stopwatch = Stopwatch()
    with StopSignal() as stop:
        result = search(settings, stop, stopwatch)
    say(f"The search took {stopwatch}")
    failed = result.pop("n_failed")
    if settings.json:
        write_json(settings.json, result | {"seconds": stopwatch.seconds, "stages": stopwatch.stages})
    return 1 if failed else 0


def search(settings: SearchSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """Run the whole command. Returns what `--json` writes, and `n_failed`."""
    say("Loading torch, mlflow and optuna ...")
    if settings.dry_run:
        from tuning.steps import dry_run

        return dry_run(settings)
    device = device_of_tasks(settings.device, settings.precision, settings.engine, settings.gpus_per_task)
    n_tasks = max(settings.trials, settings.top * settings.retrain_seeds)
    if not settings.is_search:
        n_tasks = 1 if settings.reference else settings.retrain_seeds
    with workers_for(settings, device, n_tasks, stop) as workers:
        return _search(settings, device, workers, stopwatch)


def _search(settings: SearchSettings, device: str, workers: Workers, stopwatch: Stopwatch) -> dict[str, Any]:
    from fmnist_transfer.data.examples import load_half
    from fmnist_transfer.data.files import default_data_dir
    from fmnist_transfer.store.opening import open_for_work
    from fmnist_transfer.store.roles import TUNING
    from tuning.steps import SearchContext, tune
    from tuning.without_search import fixed_configuration, train_fixed

    split = parse_split(settings.split)
    half = workers.share(load_half(settings.data_dir or default_data_dir(), split.source))
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    store = open_for_work(settings.tracking_uri, TUNING, retry, mend_copy=settings.mend_copy)
    context = SearchContext(settings, store, half, split, device, workers, stopwatch)
    if settings.is_search:
        result = tune(context)
    else:
        result = train_fixed(
            store,
            fixed_configuration(store, settings.like, split),
            context.retraining_plan(),
            force=settings.promote,
            workers=workers,
            stopwatch=stopwatch,
            take_over=settings.take_over,
            debug=settings.debug,
        )
    stopwatch.lap("registering")
    print_pairs("Look next", _next(settings, store, result))
    return result


def _next(settings: SearchSettings, store: "Store", result: dict[str, Any]) -> dict[str, str]:
    """Next steps, label -> command."""
    commands = {"in a browser": f"{store.show_command}  # trials, models"}
    if uri := result.get("model_uri"):
        model = uri.rpartition("/")[0] + "/best" if result["promoted"] else uri
        place = f" --tracking-uri {shlex.quote(settings.tracking_uri)}" if settings.tracking_uri else ""
        commands = {"transfer it": f"python -m sweeps.transfer --model-uri {model}{place}"} | commands
    if settings.is_search:
        more = command_line("tuning.search", settings, **ONE_TIME | {"trials": 2 * settings.trials})
        commands["search on"] = f"{more}  # adds trials to this study"
    return commands


def command(args: Sequence[str] | None = None) -> int:
    return run_command(SearchSettings, main, "tuning.search", args)


if __name__ == "__main__":
    sys.exit(command())
