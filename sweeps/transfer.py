"""Train the registered network on fractions of FMNIST-1, from pretrained and from random weights.

    python -m sweeps.transfer --model-uri models:/cnn2/best        # resumable: run again, it goes on

A registered model and data in; an MLflow run for each fraction x init x replicate out, and on their parent the curves,
the table, and what the sweep says of the report's four claims.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmnist_transfer.console import Progress, Stopwatch, check_distinct, check_range, run_command, say, write_json
from fmnist_transfer.errors import UsageError
from fmnist_transfer.ownership import owning
from fmnist_transfer.parallel import Outcome, Workers, count_workers, parse_workers
from fmnist_transfer.patience import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Patience
from fmnist_transfer.recipe import Precision
from fmnist_transfer.split import digits
from fmnist_transfer.stopping import Outage, StopSignal
from sweeps.grid import INITS, Cell, Init, by_fraction, plan_cells

if TYPE_CHECKING:
    from sweeps.cells import CellPlan, CellResult
    from sweeps.ledger import Ledger

FIRST_STEP = "first_step_seconds"


@dataclass(frozen=True)
class TransferSettings:
    """Train a registered network on fractions of the target half, from pretrained and from random weights."""

    model_uri: str
    """models:/cnn2/best, models:/cnn2/3, models:/MODEL_ID or runs:/RUN_ID/NAME."""
    fractions: tuple[int, ...] = tuple(range(5, 101, 5))
    """Percent of the target's training images, whole numbers from 1 to 100."""
    inits: tuple[Init, ...] = INITS
    """How the networks start."""
    replicates: int = 3
    """Sets of random draws, each shared by every init at every fraction."""
    epochs: int | None = None
    """Epochs of each training; default: the registered recipe's."""
    budget: Literal["epochs", "steps"] = "epochs"
    """epochs: as many passes at each fraction; steps: as many optimiser steps as at 100 %."""
    seed: int = 0
    """Root of every random stream."""
    tracking_uri: str | None = None
    """MLflow store; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Fashion-MNIST's folder; default: FMNIST_DATA_DIR, else the user's cache directory."""
    workers: str = "auto"
    """Training processes, one thread each; auto: one per core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    stack: bool = False
    """Train all cells of a fraction as one computation: for a GPU, not faster on a CPU."""
    precision: Precision = "float32"
    """bf16: of the training steps' forward passes; tf32: of every product on CUDA, evaluation too."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds for which a store that does not answer is waited for."""
    dry_run: bool = False
    """Only say what is done and what would run."""
    retry_failed: bool = False
    """Also run cells again that diverged; they will diverge again unless something outside of the sweep changed."""
    reap: bool = False
    """First end what dead processes left RUNNING in the store, and delete this sweep's runs that are no cell's."""
    json: Path | None = None
    """Write the result to this file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_distinct("--fractions", self.fractions)
        check_distinct("--inits", self.inits)
        for percent in self.fractions:
            check_range("--fractions", percent, 1, 100)
        check_range("--replicates", self.replicates, 1)
        check_range("--seed", self.seed, 0)
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)
        if self.dry_run and self.reap:
            raise UsageError("--dry-run changes nothing: leave out --reap")
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        parse_workers(self.workers)


def main(settings: TransferSettings) -> int:
    """Run the sweep; 0, or 1 if a cell failed."""
    stopwatch = Stopwatch()
    with StopSignal() as stop:
        result = sweep(settings, stop, stopwatch)
    say(f"The sweep took {stopwatch}")
    if settings.json:
        times = {"seconds": stopwatch.seconds, "stages": stopwatch.stages, FIRST_STEP: stopwatch.marks.get(FIRST_STEP)}
        write_json(settings.json, result | times)
    return 1 if any(cell["status"] == "failed" for cell in result["cells"]) else 0


def sweep(settings: TransferSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it."""
    say("Loading torch and mlflow ...")
    from fmnist_transfer.training import choose_device

    device = str(choose_device(settings.device, settings.precision))
    cells = plan_cells(settings.fractions, settings.inits, settings.replicates)
    n_tasks = 1 if settings.dry_run else len(by_fraction(cells)) if settings.stack else len(cells)
    with Workers(count_workers(settings.workers, device, n_tasks), stop, apart=device != "cpu") as workers:
        return _sweep(settings, cells, workers, device=device, stop=stop, stopwatch=stopwatch)


def _sweep(
    settings: TransferSettings,
    cells: list[Cell],
    workers: Workers,
    *,
    device: str,
    stop: StopSignal,
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    from fmnist_transfer.data import default_data_dir, load_half, n_train
    from fmnist_transfer.registry import load, resolve
    from fmnist_transfer.tracking import TRANSFER, open_store
    from sweeps.cells import plan_for
    from sweeps.claims import judge
    from sweeps.ledger import Ledger, identity, identity_key
    from sweeps.picture import Picture, claims_text, log_curves, print_summary

    store = open_store(settings.tracking_uri, Patience(settings.store_timeout, stop.is_set))
    reference = resolve(store, settings.model_uri)
    model = load(store, reference)
    half = load_half(settings.data_dir or default_data_dir(), model.split.target).share_memory()
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
    if plan.spec.n_classes != model.spec.n_classes:
        say(
            f"The model has {model.spec.n_classes} outputs and the target {plan.spec.n_classes} classes: "
            "its classifier is reset anyway"
        )
    grid = {cell: n_train(half.train, cell.percent) for cell in cells}
    sweep_identity = identity(model, plan)
    name = f"{reference.pinned.removeprefix('models:/')} on classes {digits(half.classes)}"
    stopwatch.lap("start")
    if settings.dry_run:
        return _dry_run(settings, Ledger(store, sweep_identity, half), grid, name)
    with owning(store.uri, "sweep", f"sweep-{identity_key(sweep_identity)}"):
        ledger = Ledger(store, sweep_identity, half)
        ledger.open(name, {"model_uri": reference.asked, "model_uri_pinned": reference.pinned})
        if settings.reap:
            n_ghosts, n_dead = ledger.delete_ghosts(), store.reap(TRANSFER)
            say(f"Reaped: {n_ghosts} runs that were no cell's deleted, {n_dead} of dead processes ended as KILLED")
        say(f"Sweep {ledger.run_id}: {name}, {len(grid)} cells")
        with store.ending(ledger.run_id):
            store.log_data(ledger.run_id, half, "target")
            so_far = ledger.known() | grid  # a smaller grid leaves the picture of a larger one whole
            store.log(ledger.run_id, tags=_grid_tags(so_far))
            picture = Picture(store, ledger.run_id, lambda: ledger.rows(so_far), name)
            todo = ledger.to_run(grid, retry_failed=settings.retry_failed)
            if len(todo) < len(grid):
                say(f"{len(grid) - len(todo)} cells are there already, {len(todo)} to go")
            stopwatch.lap("resume check")
            to_run = {cell: grid[cell] for cell in todo}
            _run_cells(
                settings, ledger, to_run, plan, workers=workers, stopwatch=stopwatch, on_finished=picture.refresh
            )
            stopwatch.lap("cells")
            rows = picture.draw()
            asked = ledger.rows(grid)
            n_done = sum(row.status != "open" for row in asked)
            stop.raise_if_set(f"{n_done} of {len(grid)} cells done; run the same command to go on")
            log_curves(store, ledger.run_id, rows)
            claims = judge(rows)
            text = claims_text(claims, rows)
            store.log_text(ledger.run_id, "claims.md", text)
    stopwatch.lap("figures and curves")
    print_summary(rows)
    say(f"\n{text}")
    say(
        "Compare in the MLflow UI: in the charts of experiment fmnist-transfer, search for tags.role = 'curve' and\n"
        "unfold the sweep; or select its runs `pretrained` and `random`, press Compare and click a metric.\n"
        f"  {store.ui_command}"
    )
    return {
        "sweep_run_id": ledger.run_id,
        "model_uri": reference.pinned,
        "split": str(model.split),
        "cells": [row.to_dict() for row in asked],
        "claims": claims,
    }


def _dry_run(settings: TransferSettings, ledger: "Ledger", grid: dict[Cell, int], name: str) -> dict[str, Any]:
    """Say what is done and what would run; no run is made or changed."""
    from sweeps.picture import print_plan

    rows = ledger.rows(grid)
    todo = ledger.to_run(grid, retry_failed=settings.retry_failed)
    say(f"{f'Sweep {ledger.run_id}' if ledger.run_id else 'A new sweep'}: {name}")
    print_plan(rows, todo)
    say(f"{len(rows) - len(todo)} of {len(rows)} cells would be left as they are, {len(todo)} would run")
    return {"sweep_run_id": ledger.run_id or None, "cells": [row.to_dict() for row in rows], "n_to_run": len(todo)}


def _grid_tags(cells: Iterable[Cell]) -> dict[str, str]:
    """The grid so far, on the parent."""
    return {
        "fractions": " ".join(map(str, sorted({cell.percent for cell in cells}))),
        "inits": " ".join(sorted({cell.init for cell in cells})),
        "replicates": str(1 + max(cell.replicate for cell in cells)),
    }


def _run_cells(
    settings: TransferSettings,
    ledger: "Ledger",
    todo: dict[Cell, int],
    plan: "CellPlan",
    *,
    workers: Workers,
    stopwatch: Stopwatch,
    on_finished: Callable[[], None],
) -> None:
    """Train the cells `todo` (with their numbers of training images), log each as it finishes."""
    from sweeps.cells import train_cells

    tasks = by_fraction(todo) if plan.stack else [(cell,) for cell in todo]
    run_ids: dict[Cell, str] = {}
    outage = Outage(workers.stop)

    def claim(cells: tuple[Cell, ...]) -> None:
        with outage.held():
            for cell in cells:
                run_ids[cell] = ledger.claim(cell, todo[cell])  # until it has ended

    def show(cells: tuple[Cell, ...], epoch: int) -> None:
        stopwatch.mark(FIRST_STEP)
        epochs = plan.recipe.epochs
        progress.working(cells, epoch / epochs, f"{cells[0].name}: epoch {epoch}/{epochs}")

    try:
        with Progress("cells", len(tasks)) as progress:
            for outcome in workers.run(train_cells, plan, tasks, on_start=claim, on_report=show):
                if outcome.status != "lost":
                    progress.finished(outcome.task)
                for cell, one in _per_cell(outcome):
                    if cell in run_ids:
                        with outage.held():
                            _log_outcome(settings, ledger, run_ids.pop(cell), one)
                if outcome.status == "done":
                    with outage.held():
                        on_finished()
    finally:
        # Empty, unless something else went wrong: perhaps the store itself, whose error is then the one to see.
        for run_id in run_ids.values():
            with contextlib.suppress(Exception):
                ledger.interrupt(run_id, "the sweep ended before it")
    outage.raise_if_any()


def _per_cell(outcome: Outcome[tuple[Cell, ...], Any]) -> Iterator[tuple[Cell, Outcome[Cell, "CellResult"]]]:
    """The outcome of a task as those of its cells, of which some may have diverged."""
    for i, cell in enumerate(outcome.task):
        result = outcome.result[i] if outcome.result else None
        if isinstance(result, Exception):
            yield cell, Outcome(cell, "failed", reason=f"{type(result).__name__}: {result}")
        else:
            yield cell, Outcome(cell, outcome.status, result, outcome.reason, outcome.details)


def _log_outcome(
    settings: TransferSettings, ledger: "Ledger", run_id: str, outcome: Outcome[Cell, "CellResult"]
) -> None:
    if outcome.result is not None:
        ledger.finish(run_id, outcome.result)
    elif outcome.status == "failed":
        ledger.fail(run_id, outcome.reason, outcome.details)
        say(f"{outcome.task.name} failed: {outcome.reason}")
        if settings.debug and outcome.details:
            say(outcome.details)
    else:
        if outcome.status == "lost":
            say(f"{outcome.task.name}: {outcome.reason}; once more")
        ledger.interrupt(run_id, outcome.reason)


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(TransferSettings, main, "sweeps.transfer", args)


if __name__ == "__main__":
    sys.exit(command())
