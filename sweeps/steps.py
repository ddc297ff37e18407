"""The steps of a sweep: source networks, recipes, cells, curves, report. Imports torch and mlflow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fmnist_transfer.data.examples import load_half, n_train
from fmnist_transfer.data.files import default_data_dir
from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.flags import ONE_TIME, precision_of_tasks
from fmnist_transfer.logged_tasks import Together, TrainedNetworks, Training, run_logged
from fmnist_transfer.network.cnn2 import CNN2
from fmnist_transfer.network.weights import State
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel, load_weights
from fmnist_transfer.store.opening import open_for_work, open_store
from fmnist_transfer.store.registry import load, note_sweep, resolve
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TRANSFER, TUNING, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.command import command_line
from fmnist_transfer.terminal.output import counted, print_pairs, say
from fmnist_transfer.terminal.progress import Progress, Stopwatch
from fmnist_transfer.training.evaluation import check_precision
from fmnist_transfer.workers.run import Workers
from sweeps.grid import Cell, Grid, by_fraction
from sweeps.report.write import begun, place_of, write_report
from sweeps.results.curve_runs import log_curves
from sweeps.results.figures import SweepFigures, print_plan, print_summary
from sweeps.results.images import with_image_variances
from sweeps.results.ledger import CellLog, Ledger, identify_sweep, open_ledger
from sweeps.results.plans import add_grid
from sweeps.results.read import read_sweep
from sweeps.rows import Row
from sweeps.settings import TransferSettings
from sweeps.training.cells import EVERY, CellPlan, passes, pretrain, train_cells
from sweeps.training.inits import copied_tensors, trunk_of
from sweeps.training.recipes import REPLICATES as TUNING_REPLICATES
from sweeps.training.recipes import choose, tuned_cells, tuning_cells


@dataclass(frozen=True)
class SweepContext:
    """Values shared by all steps of one command."""

    settings: TransferSettings
    store: Store
    model: TrainedModel
    plan: CellPlan
    name: str
    workers: Workers
    stopwatch: Stopwatch

    @property
    def grid(self) -> Grid:
        return self.settings.grid


def sweep(settings: TransferSettings, workers: Workers, device: str, stopwatch: Stopwatch) -> dict[str, Any]:
    """Run what is not done yet, or print it with `--dry-run`; return the result as `--json` writes it.

    Raises BusyError if another process runs the sweep.
    """
    store = _open(settings, workers)
    source = resolve(store, settings.model_uri)
    model = load(store, source)
    plan = _plan(settings, model, workers, device)
    name = f"{source.pinned.removeprefix('models:/')} on classes {digits(plan.half.classes)}"
    context = SweepContext(settings, store, model, plan, name, workers, stopwatch)
    has_own_sources = settings.pretrain_replicates > 0
    work = identify_sweep(model, plan, is_tuned=settings.recipe == "tuned", has_own_sources=has_own_sources)
    stopwatch.lap("start")
    if settings.dry_run:
        return _dry_run(context, Ledger(store, work, plan.half))
    tags = {"model_uri": source.asked, "model_uri_pinned": source.pinned}
    with locked(store.uri, "sweep", f"sweep-{work.key}"):
        ledger = open_ledger(store, work, plan.half, name, tags, take_over=settings.take_over)
        with store.ending(ledger.run_id):
            note_sweep(store, source, ledger.run_id, name)
            result = _sweep(context, ledger)
    _print_next(context, ledger.run_id, source.pinned)
    return result | {"model_uri": source.pinned, "split": str(model.split)}


def _open(settings: TransferSettings, workers: Workers) -> Store:
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    if settings.dry_run:
        return open_store(settings.tracking_uri, retry, mend_copy=settings.mend_copy, may_write=False)
    store = open_for_work(settings.tracking_uri, TRANSFER, retry, mend_copy=settings.mend_copy)
    store.end_orphans(TRANSFER)
    return store


def _plan(settings: TransferSettings, model: TrainedModel, workers: Workers, device: str) -> CellPlan:
    """Load the target half and plan its trainings.

    Raises UsageError where a fraction, an init or the precision is impossible.
    """
    data_dir = settings.data_dir or default_data_dir()
    half = workers.share(load_half(data_dir, model.split.target, fetch=not settings.dry_run))
    for percent in settings.fractions:
        n_train(half.train, percent)  # raises UsageError if a class gets no image
    spec = replace(model.spec, n_classes=len(half.classes))
    epochs, rate = settings.epochs or model.recipe.epochs, settings.learning_rate or model.recipe.learning_rate
    recipe = replace(model.recipe, epochs=epochs, learning_rate=rate)
    for init in settings.inits:
        copied_tensors(init, trunk_of(model.state))  # raises UsageError for more layers than there are
    if (n := model.spec.n_classes) != spec.n_classes:
        say(f"The model has {n} outputs and the target {spec.n_classes} classes; the classifier is reset in any case")
    precision = precision_of_tasks(settings, device)
    if not settings.dry_run:
        network = CNN2(model.spec)
        network.load_state_dict(model.state)
        check_precision(network, half.val.images, precision, device)
    sources, budget, seed = {EVERY: model.state}, settings.budget, settings.seed
    return CellPlan(half, spec, recipe, sources, budget, seed, device, precision, settings.stack)


def _print_next(context: SweepContext, run_id: str, model_uri: str) -> None:
    """Print where the results are, and the command that extends the sweep."""
    settings = context.settings
    usual = TransferSettings.replicates
    n_replicates = usual if settings.replicates < usual else settings.replicates + 4
    n_sources = n_replicates if settings.pretrain_replicates else 0
    changes = ONE_TIME | {"model_uri": model_uri, "replicates": n_replicates, "pretrain_replicates": n_sources}
    look_next = {
        "in a browser": f"{context.store.show_command}  # curves, report, every run",
        "on paper": place_of(run_id),
        "go on": f"{command_line('sweeps.transfer', settings, **changes)}  # extends this sweep",
    }
    print_pairs("Look next", look_next)


def _sweep(context: SweepContext, ledger: Ledger) -> dict[str, Any]:
    settings, store, stopwatch, run_id = context.settings, context.store, context.stopwatch, ledger.run_id
    store.log_data(run_id, context.plan.half, "target")
    print_pairs(f"Sweep of {context.name}", _outline(context, run_id))
    figure_cells = add_grid(store, run_id, context.grid)  # those of all commands of this sweep so far
    if settings.pretrain_replicates:
        context = replace(context, plan=replace(context.plan, sources=_source_networks(context, run_id)))
    cells = context.grid.cells()
    if settings.recipe == "tuned":
        cells = _with_tuned_recipes(context, ledger, cells)
        figure_cells = tuned_cells(figure_cells, read_sweep(store, run_id).chosen)
    figures = SweepFigures(store, run_id, lambda: ledger.rows(figure_cells), context.name)
    _run(context, ledger, cells, figures.refresh)
    stopwatch.lap("cells")
    figure_rows = figures.draw()
    rows = _done_rows(context, ledger, cells, "cells")
    store.log_hosts(run_id, ledger.hosts(rows), "cells")
    print_summary(figure_rows)
    logged = with_image_variances(store, read_sweep(store, run_id, context.grid))
    log_curves(store, logged)
    findings = write_report(store, logged, stop=context.workers.stop)
    stopwatch.lap("figures and curves")
    return {"sweep_run_id": run_id, "cells": [row.to_dict() for row in rows]} | findings


def _source_networks(context: SweepContext, run_id: str) -> dict[int, State]:
    """Return the weights of a source network per replicate.

    Those that the search trained again are used; the rest are trained as runs below the sweep's parent, by the search's
    seed. Replicates that choose recipes have source networks of their own.
    """
    settings, store, model, workers = context.settings, context.store, context.model, context.workers
    half = workers.share(load_half(settings.data_dir or default_data_dir(), model.split.source))
    seed = int(model.facts.get("seed", settings.seed))
    plan = replace(context.plan, half=half, spec=model.spec, recipe=model.recipe, sources={}, seed=seed)
    facts = {"seed": seed, "split": str(model.split), "data_sha256": half.data_sha256, "precision": plan.precision}

    def training(replicate: int) -> Training:
        own = facts | {"replicate": replicate + 1}  # a search counts its re-trainings from 1
        return Training.of(f"source r{replicate}", plan.spec, plan.recipe, plan.device, own)

    log = TrainedNetworks[int](store, TRANSFER, run_id, Role.SOURCE, half=half, training=training)
    log.use(store.find(TUNING, role=Role.RETRAINED, status="FINISHED"))
    replicates = [*range(settings.replicates), *(TUNING_REPLICATES if settings.recipe == "tuned" else ())]
    todo = log.todo(replicates, "source networks")
    if todo:
        store.describe(run_id, begun(store, model.split))
    tasks = [tuple(todo)][: len(todo)] if plan.stack else [(replicate,) for replicate in todo]
    with Progress("source networks", len(tasks)) as progress:
        run_logged(workers, pretrain, plan, tasks, log=Together(log), progress=progress, debug=settings.debug)
    trained = log.collect(replicates, "source networks", workers.stop)
    if missing := [replicate for replicate in replicates if replicate not in trained]:
        raise UserError(f"source networks of replicates {missing} could not be trained; their runs in MLflow say why")
    context.stopwatch.lap("source networks")
    return {replicate: load_weights(store, network.run_id, plan.spec) for replicate, network in trained.items()}


def _run(context: SweepContext, ledger: Ledger, cells: Sequence[Cell], on_finished: Callable[[], object]) -> None:
    """Train the cells that are not done. `on_finished` is called after each task that was logged, failures included."""
    plan, debug = context.plan, context.settings.debug
    todo = ledger.to_run(cells, retry_failed=context.settings.retry_failed)
    if n_there := len(cells) - len(todo):
        say(f"{counted(n_there, 'cell')} {'is' if n_there == 1 else 'are'} there already, {len(todo)} to go")
    if todo:
        context.store.describe(ledger.run_id, begun(context.store, context.model.split))
    context.stopwatch.lap("resume check")
    tasks = by_fraction(todo) if plan.stack else [(cell,) for cell in todo]
    sizes = {task: sum(passes(plan, cell, ledger.n_train(cell.percent)) for cell in task) for task in tasks}
    log = CellLog(ledger, plan.recipe.epochs, context.stopwatch, on_finished)
    with Progress("cells", len(tasks), sizes) as progress:
        run_logged(context.workers, train_cells, plan, tasks, log=Together(log), progress=progress, debug=debug)


def _done_rows(context: SweepContext, ledger: Ledger, cells: Sequence[Cell], noun: str) -> list[Row]:
    """Rows of the cells after `_run`; raises Interrupted if a signal ended it."""
    rows = ledger.rows(cells)
    n_done = sum(row.status != "open" for row in rows)
    context.workers.stop.raise_if_set(f"{n_done} of {len(rows)} {noun} done; {SAME_COMMAND}")
    return rows


def _with_tuned_recipes(context: SweepContext, ledger: Ledger, cells: Sequence[Cell]) -> list[Cell]:
    """Train the recipe grid of every init, choose and print the best settings, and give them to the cells."""
    inits, recipe = context.settings.inits, context.plan.recipe
    tried = tuning_cells(inits, recipe)
    say(f"Tuning one recipe per init: {len(tried)} cells")
    _run(context, ledger, tried, lambda: None)
    rows = _done_rows(context, ledger, tried, "tuning cells")
    chosen = choose(rows, inits, recipe)
    say("Settings with the lowest mean validation loss:")
    for init, changes in chosen.items():
        say(f"{init}: {'; '.join(f'{percent} % {change}' for percent, change in changes.items())}")
    if n_failed := sum(row.status == "failed" for row in rows):
        say(f"{n_failed} of {len(rows)} tuning cells failed; their settings are left out")
    context.stopwatch.lap("recipes")
    return tuned_cells(cells, chosen)


def _dry_run(context: SweepContext, ledger: Ledger) -> dict[str, Any]:
    """Print what is done and what would run. Creates and changes no run."""
    settings, cells, recipe = context.settings, context.grid.cells(), context.plan.recipe
    title = f"Sweep {ledger.run_id}" if ledger.run_id else "A new sweep"
    say(f"{title}: {context.name}")
    if settings.recipe == "tuned":
        tried = tuning_cells(settings.inits, recipe)
        n_open = len(ledger.to_run(tried, retry_failed=settings.retry_failed))
        say(f"Tuning one recipe per init: {n_open} of {len(tried)} cells would run")
        if not n_open:  # raises if no setting of an init finished, as the sweep itself would
            cells = tuned_cells(cells, choose(ledger.rows(tried), settings.inits, recipe))
    rows, todo = ledger.rows(cells), ledger.to_run(cells, retry_failed=settings.retry_failed)
    print_plan(rows, todo)
    say(f"{len(rows) - len(todo)} of {len(rows)} cells would be left as they are, {len(todo)} would run")
    return {"sweep_run_id": ledger.run_id or None, "cells": [row.to_dict() for row in rows], "n_to_run": len(todo)}


def _outline(context: SweepContext, run_id: str) -> dict[str, str]:
    """Describe what is about to run, as label -> text."""
    grid, recipe, workers = context.grid, context.plan.recipe, context.workers
    inits = ", ".join(grid.inits) if len(grid.inits) < 4 else f"{len(grid.inits)} inits"
    percents, n = ", ".join(f"{percent} %" for percent in grid.judged), grid.n_replicates
    curves = len(grid.percents) - len(grid.judged)
    n_curve = counted(grid.n_curve_replicates, "replicate")
    more = f"; {counted(curves, 'more fraction')} x {n_curve}, for the curves" if curves else ""
    budget = ", equal steps at each fraction" if context.plan.budget == "steps" else ""
    own = ", one tuned recipe per init" if context.settings.recipe == "tuned" else ""
    return {
        "cells": f"{len(grid.cells())} of {inits}: {percents} x {counted(n, 'replicate')}, judged at the end{more}",
        "each": f"{counted(recipe.epochs, 'epoch')} of {recipe.optimizer}{budget}{own}",
        "on": f"{counted(workers.n, 'worker')}, {context.plan.device}" if workers.engine == "local" else "Ray",
        "run": run_id,
    }
