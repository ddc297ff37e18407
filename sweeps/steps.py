"""The steps of a sweep: source networks, recipes, cells, curves, report. Imports torch and mlflow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fmnist_transfer.data.examples import Half, load_half, n_train
from fmnist_transfer.data.files import default_data_dir
from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.flags import ONE_TIME, Machine
from fmnist_transfer.logged_tasks import Together, TrainedNetworks, Training, run_logged
from fmnist_transfer.network.cnn2 import CNN2
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel, load_weights, pack_weights
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
from sweeps.grid import Cell, by_fraction, grid_tags
from sweeps.report.write import describe, place_of, write_report
from sweeps.results.curve_runs import log_curves
from sweeps.results.figures import SweepFigures, print_plan, print_summary
from sweeps.results.images import with_image_scores
from sweeps.results.ledger import Ledger, identify_sweep, open_ledger
from sweeps.results.read import read_sweep
from sweeps.rows import Row
from sweeps.settings import TransferSettings
from sweeps.training.cells import CellPlan, pretrain, train_cells
from sweeps.training.inits import copied_tensors, trunk_of
from sweeps.training.recipes import REPLICATES as TUNING_REPLICATES
from sweeps.training.recipes import choose, tuned_cells, tuning_cells

FIRST_STEP = "first_step_seconds"


@dataclass(frozen=True)
class SweepContext:
    settings: TransferSettings
    store: Store
    model: TrainedModel
    source: Half  # what the model was trained on
    plan: CellPlan
    name: str
    workers: Workers
    stopwatch: Stopwatch


def sweep(settings: TransferSettings, machine: Machine, stopwatch: Stopwatch) -> dict[str, Any]:
    """Run what is not done yet, or print it with `--dry-run`; return what `--json` writes, and `n_failed`."""
    workers = machine.workers
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    if settings.dry_run:
        store = open_store(settings.tracking_uri, retry, mend_copy=settings.mend_copy, may_write=False)
    else:
        store = open_for_work(settings.tracking_uri, TRANSFER, retry, mend_copy=settings.mend_copy)
        store.end_orphans(TRANSFER)
    version = resolve(store, settings.model_uri)
    model = load(store, version)
    data_dir = settings.data_dir or default_data_dir()
    source, target = (
        load_half(data_dir, own, fetch=not settings.dry_run) for own in (model.split.source, model.split.target)
    )
    plan = replace(_plan(settings, model, workers.share(target), machine), source_test=source.test)
    name = f"{version.pinned.removeprefix('models:/')} on classes {digits(plan.half.classes)}"
    context = SweepContext(settings, store, model, source, plan, name, workers, stopwatch)
    work = identify_sweep(model, plan, settings)
    stopwatch.lap("start")
    if settings.dry_run:
        ledger = Ledger(store, work, plan.half)
        rows, _ = _rows(context, ledger)
        todo = ledger.to_run([row.cell for row in rows], retry_failed=settings.retry_failed)
        print_plan(rows, todo)
        cells = [row.to_dict() for row in rows]
        return {"sweep_run_id": ledger.run_id or None, "cells": cells, "n_to_run": len(todo), "n_failed": 0}
    tags = {"model_uri": settings.model_uri, "model_uri_pinned": version.pinned}
    with locked(store.uri, "sweep", f"sweep-{work.key}"):
        ledger = open_ledger(store, work, plan.half, name, tags, take_over=settings.take_over)
        with store.ending(ledger.run_id):
            note_sweep(store, version, ledger.run_id, name)
            result = _sweep(context, ledger)
    _print_next(context, ledger.run_id, version.pinned)
    return result | {"model_uri": version.pinned, "split": str(model.split)}


def _plan(settings: TransferSettings, model: TrainedModel, half: Half, machine: Machine) -> CellPlan:
    """Plan the trainings on the target half, but for what they start from. Raises UsageError if one can't run."""
    for percent in settings.fractions:
        n_train(half.train, percent)  # raises UsageError if a class gets no image
    spec = replace(model.spec, n_classes=len(half.classes))
    epochs, rate = settings.epochs or model.recipe.epochs, settings.learning_rate or model.recipe.learning_rate
    recipe = replace(model.recipe, epochs=epochs, learning_rate=rate)
    network = CNN2(model.spec)
    for init in settings.inits:
        copied_tensors(init, trunk_of(network.state_dict()))  # raises UsageError for more layers than there are
    if (n := model.spec.n_classes) != spec.n_classes:
        say(f"The model has {n} outputs and the target {spec.n_classes} classes; the classifier is reset in any case")
    device, precision = machine.device, machine.precision
    if not settings.dry_run:
        network.load_state_dict(model.state)
        check_precision(network, half.val.images, precision, device)
    budget, seed = settings.budget, settings.seed
    return CellPlan(half, spec, recipe, {}, budget, seed, device, precision, settings.stack)


def _sweep(context: SweepContext, ledger: Ledger) -> dict[str, Any]:
    settings, store, stopwatch, run_id = context.settings, context.store, context.stopwatch, ledger.run_id
    store.log_data(run_id, context.plan.half, "target")
    store.log(run_id, tags=grid_tags(store.client.get_run(run_id).data.tags, settings.grid))
    figures = SweepFigures(store, run_id, context.name)
    ledger.on_report = partial(stopwatch.mark, FIRST_STEP)
    ledger.on_end = partial(figures.refresh, lambda: read_sweep(store, run_id).rows)
    rows, tried = _rows(context, ledger)
    logged = read_sweep(store, run_id, settings.grid)  # with the rows of all commands of this sweep
    figures.draw(logged.rows)
    print_summary(logged.rows)
    logged = with_image_scores(store, logged)
    log_curves(store, logged)
    findings = write_report(store, logged, stop=context.workers.stop)
    stopwatch.lap("figures and curves")
    n_failed = sum(row.status != "finished" for row in (*tried, *rows))
    return {"sweep_run_id": run_id, "cells": [row.to_dict() for row in rows], "n_failed": n_failed} | findings


def _rows(context: SweepContext, ledger: Ledger) -> tuple[list[Row], list[Row]]:
    """Train what is not done, or count it in a dry run. Return the rows of the grid, and of cells to choose recipes."""
    settings, grid, recipe = context.settings, context.settings.grid, context.plan.recipe
    inits, run_id = ", ".join(grid.inits), ledger.run_id or "not begun"
    say(f"Sweep of {context.name} on {context.plan.device}: {inits}; run {run_id}")
    context = replace(context, plan=replace(context.plan, sources=_sources(context, ledger.run_id)))
    cells, tried = grid.cells(), list[Row]()
    if settings.recipe == "tuned":
        tried = _train(context, ledger, tuning_cells(grid.inits, recipe), "tuning cell")
        if not (settings.dry_run and any(row.status == "open" for row in tried)):
            chosen = choose(tried, grid.inits, recipe)
            for init, changes in chosen.items():
                say(f"Recipe of {init}: {'; '.join(f'{percent} % {change}' for percent, change in changes.items())}")
            cells = tuned_cells(cells, chosen)
        context.stopwatch.lap("recipes")
    rows = _train(context, ledger, cells, "cell")
    context.stopwatch.lap("cells")
    return rows, tried


def _sources(context: SweepContext, run_id: str) -> dict[int, bytes]:
    """Return the weights that each replicate starts from: the registered, or those of a source network of its own.

    Networks that a search or another sweep trained are used; the rest are trained. A replicate whose training fails is
    left out.
    """
    settings, store, model, workers = context.settings, context.store, context.model, context.workers
    replicates = [*range(settings.replicates), *(TUNING_REPLICATES if settings.recipe == "tuned" else ())]
    if not settings.pretrain_replicates:
        return dict.fromkeys(replicates, pack_weights(model.state))
    half = workers.share(context.source)
    seed = int(model.facts.get("seed", settings.seed))
    plan = replace(context.plan, half=half, spec=model.spec, recipe=model.recipe, seed=seed, source_test=None)
    facts = {"seed": seed, "split": str(model.split), "data_sha256": half.data_sha256, "precision": plan.precision}
    facts |= {"stacked": True} if plan.stack else {}  # rounds differently, so no network of a search counts

    def training(i: int) -> Training:  # a search counts its re-trainings from 1
        return Training.of(f"source r{i}", plan.spec, plan.recipe, plan.device, facts | {"replicate": i + 1})

    parent = "" if settings.dry_run else run_id  # passing the run's id would end its open runs
    log = TrainedNetworks[int](store, TRANSFER, parent, Role.SOURCE, half=half, training=training)
    log.use([*store.find(TRANSFER, role=Role.SOURCE), *store.find(TUNING, role=Role.RETRAINED)])
    todo = log.todo(replicates, "source networks")
    if settings.dry_run:
        say(f"{counted(len(todo), 'source network')} would be trained")
        return {}
    tasks = ([tuple(todo)] if todo else []) if plan.stack else [(replicate,) for replicate in todo]
    with Progress("source networks", len(tasks)) as progress:
        run_logged(workers, pretrain, plan, tasks, log=Together(log), progress=progress, debug=settings.debug)
    trained = log.collect(replicates, "source networks", workers.stop)
    context.stopwatch.lap("source networks")
    weights = {replicate: load_weights(store, network.run_id, plan.spec) for replicate, network in trained.items()}
    return {replicate: pack_weights(state) for replicate, state in weights.items()}


def _train(context: SweepContext, ledger: Ledger, cells: Sequence[Cell], noun: str) -> list[Row]:
    """Train the cells that are not done, unless in a dry run; return the rows of all. Raises Interrupted."""
    settings, plan, workers = context.settings, context.plan, context.workers
    todo = ledger.to_run(cells, retry_failed=settings.retry_failed)
    say(f"{counted(len(todo), noun)} to train; there already: {len(cells) - len(todo)}")
    if settings.dry_run:
        return ledger.rows(cells)
    for cell in (cell for cell in todo if cell.replicate not in plan.sources):
        ledger.begin(cell)
        ledger.fail(cell, "the training of its source network failed")
    todo = [cell for cell in todo if cell.replicate in plan.sources]
    if todo:
        describe(context.store, ledger.run_id, str(context.model.split))
    context.stopwatch.lap("resume check")
    tasks = by_fraction(todo) if plan.stack else [(cell,) for cell in todo]
    sizes = {task: sum(cell.work(plan.budget) for cell in task) for task in tasks}
    with Progress("fractions" if plan.stack else f"{noun}s", len(tasks), sizes) as progress:
        run_logged(workers, train_cells, plan, tasks, log=Together(ledger), progress=progress, debug=settings.debug)
    rows = ledger.rows(cells)
    n_done = sum(row.status != "open" for row in rows)
    workers.stop.raise_if_set(f"{n_done} of {len(rows)} {noun}s done; {SAME_COMMAND}")
    return rows


def _print_next(context: SweepContext, run_id: str, model_uri: str) -> None:
    """Print where the results are, and the command that extends the sweep."""
    settings, usual = context.settings, TransferSettings.replicates
    n_replicates = usual if settings.replicates < usual else settings.replicates + 4
    n_sources = n_replicates if settings.pretrain_replicates else 0
    changes = ONE_TIME | {"model_uri": model_uri, "replicates": n_replicates, "pretrain_replicates": n_sources}
    look = f"{context.store.show_command}  # curves, report, every run"
    go_on = f"{command_line('sweeps.transfer', settings, **changes)}  # extends this sweep"
    print_pairs("Look next", {"in a browser": look, "report": place_of(run_id), "go on": go_on})
