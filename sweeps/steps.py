"""The steps of a sweep: source networks, recipes, cells, curves, report.

Imports torch and mlflow, so the command imports this module only after it has parsed its flags.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fmnist_transfer.data.examples import load_half, n_train
from fmnist_transfer.data.files import default_data_dir
from fmnist_transfer.errors import SAME_COMMAND, UsageError
from fmnist_transfer.identity import Identity
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel
from fmnist_transfer.store.registry import PinnedModel, note_sweep
from fmnist_transfer.store.roles import NOTE
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import about, counted, print_pairs, say, say_heading
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.training.forecast import seconds_per_pass
from fmnist_transfer.workers.run import Workers
from sweeps.grid import TRAITS, Cell, Grid
from sweeps.report.mlflow_text import begun
from sweeps.report.render import CLAIMS_HEAD, claims_text
from sweeps.report.write import write_report
from sweeps.results.curves import SweepFigures, log_curves, print_plan, print_summary
from sweeps.results.ledger import Ledger
from sweeps.results.read import add_grid, asked_cells, read_sweep
from sweeps.run_cells import run_cells
from sweeps.settings import TransferSettings
from sweeps.training.cells import CellPlan, passes
from sweeps.training.recipes import Chosen, choose, print_chosen, tuned_cells, tuning_cells
from sweeps.training.source_log import source_networks
from sweeps.training.source_networks import PretrainingPlan


@dataclass(frozen=True)
class SweepContext:
    """Values shared by all steps of one command."""

    settings: TransferSettings
    store: Store
    model: TrainedModel
    plan: CellPlan
    grid: Grid
    name: str
    workers: Workers
    stopwatch: Stopwatch

    def with_images(self, cells: Iterable[Cell]) -> dict[Cell, int]:
        """Map each cell to its number of training images. Raises UsageError if a class would have none."""
        return {cell: n_train(self.plan.half.train, cell.percent) for cell in cells}


def run_sweep(context: SweepContext, work: Identity, pinned_model: PinnedModel) -> dict[str, Any]:
    """Run what is not done yet; return the result for `--json`. Raises BusyError if another process runs the sweep."""
    store = context.store
    tags = {"model_uri": pinned_model.asked, "model_uri_pinned": pinned_model.pinned}
    with locked(store.uri, "sweep", f"sweep-{work.key}"):
        ledger = Ledger(store, work, context.plan.half)
        ledger.open(context.name, tags, take_over=context.settings.take_over)
        with store.ending(ledger.run_id):
            return _sweep(context, ledger, pinned_model)


def _sweep(context: SweepContext, ledger: Ledger, pinned_model: PinnedModel) -> dict[str, Any]:
    settings, store, stopwatch = context.settings, context.store, context.stopwatch
    _introduce(context, ledger, pinned_model)
    if settings.pretrain_replicates:
        context = _with_sources(context, ledger.run_id)
    so_far = add_grid(store, ledger.run_id, context.grid)
    cells, shown = context.grid.cells(), asked_cells(so_far)  # figures show all grids so far
    if settings.recipe == "tuned":
        cells = tuned_cells(cells, _choose_recipes(context, ledger))
        shown = tuned_cells(shown, read_sweep(store, store.client.get_run(ledger.run_id)).chosen)
    if ledger.to_run(context.with_images(cells), retry_failed=settings.retry_failed):
        store.describe(ledger.run_id, begun(store, context.model.split))
    figures = SweepFigures(store, ledger.run_id, lambda: ledger.rows(context.with_images(shown)), context.name)
    _run(context, ledger, cells, figures.refresh)
    stopwatch.lap("cells")
    rows = figures.draw()
    asked_rows = ledger.rows(context.with_images(cells))
    n_done = sum(row.status != "open" for row in asked_rows)
    context.workers.stop.raise_if_set(f"{n_done} of {len(asked_rows)} cells done; {SAME_COMMAND}")
    store.log_hosts(ledger.run_id, ledger.hosts(asked_rows), "cells")
    log_curves(store, ledger.run_id, rows)
    print_summary(rows)
    logged = read_sweep(store, store.client.get_run(ledger.run_id))
    findings = write_report(store, logged, stop=context.workers.stop)
    say_heading(CLAIMS_HEAD)
    say(claims_text(findings))
    stopwatch.lap("figures and curves")
    return {"sweep_run_id": ledger.run_id, "cells": [row.to_dict() for row in asked_rows]} | findings.to_dict()


def _introduce(context: SweepContext, ledger: Ledger, pinned_model: PinnedModel) -> None:
    """Log the sweep's data, model and description before any training."""
    store, run_id = context.store, ledger.run_id
    note_sweep(store, pinned_model, run_id, context.name)
    store.log_data(run_id, context.plan.half, "target")
    if NOTE not in store.client.get_run(run_id).data.tags:
        store.describe(run_id, begun(store, context.model.split))
    print_pairs(f"Sweep of {context.name}", outline(context, run_id))


def _with_sources(context: SweepContext, run_id: str) -> SweepContext:
    """Replace the registered network by one source network per replicate."""
    settings, model, plan = context.settings, context.model, context.plan
    half = context.workers.share(load_half(settings.data_dir or default_data_dir(), model.split.source))
    pretraining = PretrainingPlan(half, model.spec, model.recipe, plan.seed, plan.device, plan.precision)
    sources = source_networks(
        context.store, run_id, pretraining, settings.pretrain_replicates, context.workers, debug=settings.debug
    )
    context.stopwatch.lap("source networks")
    return replace(context, plan=replace(plan, sources=sources))


def _run(context: SweepContext, ledger: Ledger, cells: Sequence[Cell], on_finished: Callable[[], None]) -> None:
    """Train the cells that are not done yet."""
    images = context.with_images(cells)
    todo = ledger.to_run(images, retry_failed=context.settings.retry_failed)
    if n_there := len(images) - len(todo):
        say(f"{counted(n_there, 'cell')} {'is' if n_there == 1 else 'are'} there already, {len(todo)} to go")
    if todo:
        say_forecast(context, {cell: images[cell] for cell in todo})
    context.stopwatch.lap("resume check")
    run_cells(
        ledger,
        {cell: images[cell] for cell in todo},
        context.plan,
        workers=context.workers,
        stopwatch=context.stopwatch,
        on_finished=on_finished,
        debug=context.settings.debug,
    )


def _choose_recipes(context: SweepContext, ledger: Ledger) -> Chosen:
    """Train the recipe grid of every init; choose and print the best settings."""
    inits = context.grid.inits
    tried = tuning_cells(inits, context.plan.recipe)
    say(f"Tuning one recipe per init: {len(tried)} cells")
    _run(context, ledger, tried, lambda: None)
    rows = ledger.rows(context.with_images(tried))
    n_done = sum(row.status != "open" for row in rows)
    context.workers.stop.raise_if_set(f"{n_done} of {len(tried)} tuning cells done; {SAME_COMMAND}")
    chosen = choose(rows, inits, context.plan.recipe)
    print_chosen(chosen)
    if n_failed := sum(row.status == "failed" for row in rows):
        say(f"{n_failed} of {len(rows)} tuning cells failed; their settings are left out")
    context.stopwatch.lap("recipes")
    return chosen


def dry_run(context: SweepContext, ledger: Ledger) -> dict[str, Any]:
    """Print what is done and what would run. Creates and changes no run."""
    settings, store, cells = context.settings, context.store, context.grid.cells()
    say(f"{f'Sweep {ledger.run_id}' if ledger.run_id else 'A new sweep'}: {context.name}")
    if settings.recipe == "tuned":
        tried = context.with_images(tuning_cells(settings.inits, context.plan.recipe))
        n_open = len(ledger.to_run(tried, retry_failed=settings.retry_failed))
        say(f"Tuning one recipe per init: {n_open} of {len(tried)} cells would run")
        if ledger.run_id and not n_open:
            chosen = read_sweep(store, store.client.get_run(ledger.run_id)).chosen
            cells = tuned_cells(cells, chosen)
    rows = ledger.rows(context.with_images(cells))
    todo = ledger.to_run(context.with_images(cells), retry_failed=settings.retry_failed)
    print_plan(rows, todo)
    say(f"{len(rows) - len(todo)} of {len(rows)} cells would be left as they are, {len(todo)} would run")
    return {"sweep_run_id": ledger.run_id or None, "cells": [row.to_dict() for row in rows], "n_to_run": len(todo)}


def outline(context: SweepContext, run_id: str) -> dict[str, str]:
    """Describe what is about to run, as label -> text."""
    grid, recipe = context.grid, context.plan.recipe
    inits = ", ".join(grid.inits) if len(grid.inits) < 4 else f"{len(grid.inits)} inits"
    percents = f"{len(grid.percents)} fractions ({min(grid.percents)} to {max(grid.percents)} %)"
    if len(grid.percents) == 1:
        percents = f"{grid.percents[0]} %"
    budget = ", equal steps at each fraction" if context.plan.budget == "steps" else ""
    workers = counted(context.workers.n, "worker")
    own = ", one tuned recipe per init" if context.settings.recipe == "tuned" else ""
    return {
        "cells": f"{len(grid.cells())}: {percents} x {inits} x {counted(grid.n_replicates, 'replicate')}",
        "each": f"{counted(recipe.epochs, 'epoch')} of {recipe.optimizer}{budget}{own}",
        "on": f"{workers}, {context.plan.device}" if context.workers.engine == "local" else "Ray",
        "run": run_id,
    }


def say_forecast(context: SweepContext, todo: Mapping[Cell, int]) -> None:
    """Print the expected duration, which is unknown on a cluster, with a stack and on a GPU."""
    plan, head = context.plan, f"{counted(len(todo), 'cell')} to train"
    per_pass = None
    if context.workers.engine == "local" and not plan.stack:
        per_pass = seconds_per_pass(plan.spec, plan.recipe, plan.device, plan.precision)
    if per_pass is None:
        say(f"{head}; the time left is shown once the first are done")
        return
    total = sum(passes(plan, cell, n_train) for cell, n_train in todo.items())
    say(f"{head}: {about(per_pass * total / min(context.workers.n, len(todo)))}")


def check_inits(settings: TransferSettings, epochs: int) -> None:
    """Raise UsageError if an init does not fit the number of epochs or `--stack`."""
    from sweeps.training.inits import probing_epochs

    if "lp-ft" in settings.inits:
        probing_epochs(epochs)
    if settings.stack and (apart := [init for init in settings.inits if not TRAITS[init].is_one_fit]):
        raise UsageError(f"--stack trains all layers in a single training: leave it out with --inits {' '.join(apart)}")
