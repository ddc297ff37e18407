"""Train the registered network on fractions of FMNIST-1, from pretrained and from random weights.

    python -m sweeps.transfer --model-uri models:/cnn2/best        # run it again to resume

Reads a registered model and the data. Writes one MLflow run per fraction x init x replicate. Their parent run gets the
curves, the table, and a verdict on each of the original report's four claims.
"""

import sys
from collections.abc import Sequence
from typing import Any

from fmnist_transfer.data.split import digits
from fmnist_transfer.flags import ONE_TIME, device_of_tasks, workers_for
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import command_line, run_command
from fmnist_transfer.terminal.output import print_pairs, say, write_json
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from sweeps.grid import Grid, by_fraction
from sweeps.report.files import place_of
from sweeps.settings import TransferSettings


def main(settings: TransferSettings) -> int:
    """Run the sweep. Returns the exit status: 0, or 1 if a cell failed."""
    stopwatch = Stopwatch()
    with StopSignal() as stop:
        result = sweep(settings, stop, stopwatch)
    say(f"The sweep took {stopwatch}")
    if settings.json:
        from sweeps.run_cells import FIRST_STEP

        times = {"seconds": stopwatch.seconds, "stages": stopwatch.stages, FIRST_STEP: stopwatch.marks.get(FIRST_STEP)}
        write_json(settings.json, result | times)
    return 1 if any(cell["status"] != "finished" for cell in result["cells"]) and not settings.dry_run else 0


def sweep(settings: TransferSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """Run the whole command; return the result as `--json` writes it."""
    say("Loading torch and mlflow ...")
    device = device_of_tasks(settings.device, settings.precision, settings.engine, settings.gpus_per_task)
    grid = Grid(settings.fractions, settings.inits, settings.replicates)
    cells = grid.cells()
    n_tasks = max(settings.pretrain_replicates, len(by_fraction(cells)) if settings.stack else len(cells))
    if settings.recipe == "tuned":
        from sweeps.training.recipes import tuning_cells

        n_tasks = max(n_tasks, len(tuning_cells(settings.inits, Recipe())))
    if settings.dry_run:
        n_tasks = 1
    with workers_for(settings, device, n_tasks, stop) as workers:
        return _sweep(settings, grid, workers, device=device, stopwatch=stopwatch)


def _sweep(
    settings: TransferSettings, grid: Grid, workers: Workers, *, device: str, stopwatch: Stopwatch
) -> dict[str, Any]:
    from fmnist_transfer.data.examples import load_half
    from fmnist_transfer.data.files import default_data_dir
    from fmnist_transfer.store.opening import open_for_work, open_store
    from fmnist_transfer.store.registry import load, resolve
    from fmnist_transfer.store.roles import TRANSFER
    from sweeps.analysis.statistics import MIN_REPLICATES
    from sweeps.results.ledger import Ledger, identify_sweep
    from sweeps.steps import SweepContext, check_inits, dry_run, run_sweep
    from sweeps.training.cells import plan_for

    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    if settings.dry_run:
        store = open_store(settings.tracking_uri, retry, mend_copy=settings.mend_copy, may_write=False)
    else:
        store = open_for_work(settings.tracking_uri, TRANSFER, retry, mend_copy=settings.mend_copy)
    pinned_model = resolve(store, settings.model_uri)
    model = load(store, pinned_model)
    data_dir = settings.data_dir or default_data_dir()
    half = workers.share(load_half(data_dir, model.split.target, fetch=not settings.dry_run))
    plan = plan_for(
        model,
        half,
        epochs=settings.epochs,
        budget=settings.budget,
        seed=settings.seed,
        device=device,
        precision=settings.precision,
        stack=settings.stack,
    )
    check_inits(settings, plan.recipe.epochs)
    if plan.spec.n_classes != model.spec.n_classes:
        say(
            f"The model has {model.spec.n_classes} outputs and the target {plan.spec.n_classes} classes; "
            "the classifier is reset in any case"
        )
    name = f"{pinned_model.pinned.removeprefix('models:/')} on classes {digits(half.classes)}"
    work = identify_sweep(model, plan, tuned=settings.recipe == "tuned", own_sources=settings.pretrain_replicates > 0)
    context = SweepContext(settings, store, model, plan, grid, name, workers, stopwatch)
    context.with_images(grid.cells())  # refuses a fraction without images before anything is written
    stopwatch.lap("start")
    if settings.dry_run:
        return dry_run(context, Ledger(store, work, half))
    result = run_sweep(context, work, pinned_model)
    n_more = next((n for n in (MIN_REPLICATES, 10) if n > settings.replicates), settings.replicates + 10)
    sources = n_more if settings.pretrain_replicates else 0  # each replicate needs one
    changes = {"model_uri": pinned_model.pinned, "replicates": n_more, "pretrain_replicates": sources}
    more = command_line("sweeps.transfer", settings, **(ONE_TIME | changes))
    print_pairs(
        "Look next",
        {
            "in a browser": f"{store.show_command}  # curves, report, every run",
            "on paper": place_of(result["sweep_run_id"]),
            "go on": f"{more}  # extends this sweep",
        },
    )
    return result | {"model_uri": pinned_model.pinned, "split": str(model.split)}


def command(args: Sequence[str] | None = None) -> int:
    """Run the command with `args` (default: `sys.argv`); return its exit status."""
    return run_command(TransferSettings, main, "sweeps.transfer", args)


if __name__ == "__main__":
    sys.exit(command())
