"""Train the registered network on fractions of FMNIST-1, from pretrained and from random weights.

    python -m sweeps.transfer --model-uri models:/cnn2/best        # resumable: run again, it goes on

A registered model and data in; an MLflow run for each fraction x init x replicate out, and on their parent the curves,
the table, and what the sweep says of the report's four claims.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fmnist_transfer.console import (
    Progress,
    check_distinct,
    check_range,
    duration,
    print_table,
    run_command,
    say,
    write_json,
)
from fmnist_transfer.parallel import StopSignal, parse_workers, run_tasks
from sweeps.grid import INITS, Cell, Init, cells

if TYPE_CHECKING:
    from torch import Tensor

    from fmnist_transfer.data import Half
    from fmnist_transfer.model import CNN2Spec
    from fmnist_transfer.recipe import Recipe
    from fmnist_transfer.registry import Reference, TrainedModel
    from fmnist_transfer.tracking import Store
    from fmnist_transfer.training import Result
    from sweeps.ledger import Ledger
    from sweeps.table import Row

NUMERICS_VERSION = 1  # by hand, when results may change: cells of before are then not reused
REFRESH_SECONDS = 60.0  # between two drawings of the parent's figures


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
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        parse_workers(self.workers)


@dataclass(frozen=True)
class CellPlan:
    """What every cell of a sweep shares; sent to each worker once."""

    half: "Half"
    spec: "CNN2Spec"
    """Of the target's network."""
    recipe: "Recipe"
    registered: "dict[str, Tensor]"
    budget: Literal["epochs", "steps"]
    seed: int
    device: str


class CellResult(NamedTuple):
    result: "Result"
    weights_digest: str


def train_cell(
    plan: CellPlan, cell: Cell, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> CellResult:
    """Train one cell, in a worker; reports its epoch."""
    import dataclasses

    from fmnist_transfer.data import n_train, nested_order
    from fmnist_transfer.model import weights_digest
    from fmnist_transfer.seeding import Streams
    from fmnist_transfer.training import fit_and_score
    from sweeps.arms import starting_network

    streams = Streams(plan.seed, cell.replicate)
    network = starting_network(cell.init, plan.spec, plan.registered, streams).to(plan.device)
    order = nested_order(plan.half.train.labels, streams.generator("subset"))
    half = plan.half.to(plan.device)
    subset = half.train.take(order[: n_train(plan.half.train, cell.percent)].to(plan.device))
    result = fit_and_score(
        network,
        subset,
        half,
        plan.recipe,
        streams,
        steps_per_epoch=plan.recipe.steps_per_epoch(len(order)) if plan.budget == "steps" else None,
        on_epoch=lambda epoch: report(epoch.epoch),
        should_stop=should_stop,
    )
    return CellResult(dataclasses.replace(result, final_state={}), weights_digest(result.final_state))


def main(settings: TransferSettings) -> int:
    """Run the sweep; 0, or 1 if a cell failed."""
    start = time.perf_counter()
    with StopSignal() as stop:
        result = sweep(settings, stop)
    if settings.json:
        write_json(settings.json, result | {"seconds": time.perf_counter() - start})
    return 1 if any(cell["status"] == "failed" for cell in result["cells"]) else 0


def sweep(settings: TransferSettings, stop: StopSignal) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it."""
    say("Loading torch and mlflow ...")
    from fmnist_transfer.data import default_data_dir, load_half, n_train
    from fmnist_transfer.registry import load, resolve
    from fmnist_transfer.tracking import open_store
    from fmnist_transfer.training import choose_device
    from sweeps.claims import judge
    from sweeps.ledger import Ledger, identity_key

    device = str(choose_device(settings.device))
    store = open_store(settings.tracking_uri)
    reference = resolve(store, settings.model_uri)
    model = load(reference)
    half = load_half(settings.data_dir or default_data_dir(), model.split.target).share_memory()
    plan = _plan(settings, model, half, device)
    grid = {
        cell: n_train(half.train, cell.percent)
        for cell in cells(settings.fractions, settings.inits, settings.replicates)
    }
    identity = _identity(model, plan)
    with store.owning("sweep", f"sweep-{identity_key(identity)}"):
        name = f"{reference.pinned.removeprefix('models:/')} on classes {''.join(map(str, half.classes))}"
        ledger = Ledger(store, identity, name=name, tags=_tags(reference, settings))
        say(f"Sweep {ledger.run_id}: {name}, {len(grid)} cells")
        with store.ending(ledger.run_id):
            store.log_data(ledger.run_id, half, "target")
            picture = _Picture(store, ledger, grid, name)
            _run_cells(settings, ledger, grid, plan, picture, stop)
            rows = picture.draw()
            n_done = sum(row.status != "open" for row in rows)
            stop.raise_if_set(f"{n_done} of {len(grid)} cells done; run the same command to go on")
            _log_curves(store, ledger.run_id, rows)
            claims = judge(rows)
            store.log_text(ledger.run_id, "claims.md", _claims_text(claims))
    _print_summary(rows)
    say("\n" + _claims_text(claims))
    say(
        "Compare in the MLflow UI: open the sweep, select its runs `pretrained` and `random`, press Compare.\n"
        f"  {store.ui_command}"
    )
    return {
        "sweep_run_id": ledger.run_id,
        "model_uri": reference.pinned,
        "split": str(model.split),
        "cells": [row.to_dict() for row in rows],
        "claims": claims,
    }


def _plan(settings: TransferSettings, model: "TrainedModel", half: "Half", device: str) -> CellPlan:
    import dataclasses

    recipe = dataclasses.replace(model.recipe, epochs=settings.epochs or model.recipe.epochs)
    spec = dataclasses.replace(model.spec, n_classes=len(half.classes))
    if spec != model.spec:
        say(f"The model has {model.spec.n_classes} outputs, the target {spec.n_classes} classes: its classifier is reset.")
    return CellPlan(half, spec, recipe, model.state, settings.budget, settings.seed, device)


def _identity(model: "TrainedModel", plan: CellPlan) -> dict[str, Any]:
    """All that a cell's result depends on but its fraction, init and replicate."""
    import torch

    from fmnist_transfer.model import weights_digest

    identity: dict[str, Any] = {f"spec.{key}": value for key, value in plan.spec.to_dict().items()}
    identity |= {f"recipe.{key}": value for key, value in plan.recipe.to_dict().items()}
    return identity | {
        "weights_digest": weights_digest(model.state),
        "split": str(model.split),
        "budget": plan.budget,
        "seed": plan.seed,
        "data_sha256": plan.half.data_sha256,
        "device": torch.device(plan.device).type,
        "dtype": "float32",
        "threads": 1,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "numerics_version": NUMERICS_VERSION,
    }


def _tags(reference: "Reference", settings: TransferSettings) -> dict[str, Any]:
    return {
        "model_uri": reference.asked,
        "model_uri_pinned": reference.pinned,
        "fractions": " ".join(map(str, sorted(settings.fractions))),
        "inits": " ".join(settings.inits),
        "replicates": settings.replicates,
    }


def _run_cells(
    settings: TransferSettings,
    ledger: "Ledger",
    grid: dict[Cell, int],
    plan: CellPlan,
    picture: "_Picture",
    stop: StopSignal,
) -> None:
    """Train the open cells, log each as it finishes."""
    todo = [cell for cell, n in grid.items() if ledger.row(cell, n).status == "open"]
    if len(todo) < len(grid):
        say(f"{len(grid) - len(todo)} cells are there already, {len(todo)} to go")
    run_ids: dict[Cell, str] = {}
    n_workers = max(1, min(parse_workers(settings.workers), len(todo)))
    with Progress("cells", len(todo)) as progress:
        for outcome in run_tasks(
            train_cell,
            plan,
            todo,
            n_workers=n_workers,
            stop=stop,
            on_start=lambda cell: run_ids.update({cell: ledger.claim(cell, grid[cell])}),
            on_report=lambda cell, epoch: progress.working(
                cell, epoch / plan.recipe.epochs, f"{cell.name}: epoch {epoch}/{plan.recipe.epochs}"
            ),
        ):
            progress.finished(outcome.task)
            run_id = run_ids[outcome.task]
            if outcome.status == "done":
                ledger.finish(run_id, *outcome.result)
                picture.refresh()
            elif outcome.status == "failed":
                ledger.fail(run_id, outcome.reason)
                say(f"{outcome.task.name} failed: {outcome.reason}")
            else:
                ledger.interrupt(run_id)


class _Picture:
    """The parent's figures and table, drawn again as cells finish."""

    def __init__(self, store: "Store", ledger: "Ledger", grid: dict[Cell, int], title: str):
        self._store, self._ledger, self._grid, self._title = store, ledger, grid, title
        self._start = time.monotonic()
        self._drawn: float | None = None

    def refresh(self) -> None:
        """Draw if both ends of the curves are there and the last drawing is old enough."""
        now = time.monotonic()
        if self._drawn is not None and now - self._drawn < REFRESH_SECONDS:
            return
        rows = self._rows()
        if sum(row.status == "finished" for row in rows) >= 4:
            if self._drawn is None:
                say(f"The first graph is there after {duration(now - self._start)}: figures/ of the sweep's run")
            self._draw(rows)
            self._drawn = time.monotonic()

    def draw(self) -> "list[Row]":
        """Draw now; the rows of the whole grid."""
        rows = self._rows()
        self._draw(rows)
        return rows

    def _rows(self) -> "list[Row]":
        return [self._ledger.row(cell, n) for cell, n in self._grid.items()]

    def _draw(self, rows: "Sequence[Row]") -> None:
        import matplotlib.pyplot as plt

        from sweeps.figures import sweep_figures
        from sweeps.table import to_csv

        for path, figure in sweep_figures(rows, self._title).items():
            self._store.log_figure(self._ledger.run_id, path, figure)
            plt.close(figure)
        self._store.log_text(self._ledger.run_id, "results.csv", to_csv(rows))


CURVES = {
    "curve/train_loss": "final/train_loss",
    "curve/val_loss": "final/val_loss",
    "curve/val_accuracy": "final/val_accuracy",
    "curve/best_val_loss": "best/val_loss",
    "curve/test_accuracy": "test/accuracy",
}


def _log_curves(store: "Store", sweep_run_id: str, rows: "Sequence[Row]") -> None:
    """A run for each init with the means over replicates at step = percent: comparing them draws the report's graphs.

    Curves of an earlier, smaller grid are deleted: a step cannot be logged anew.
    """
    import numpy as np

    from fmnist_transfer.tracking import TRANSFER
    from sweeps.table import by_replicate

    for old in store.find(TRANSFER, role="curve", parent=sweep_run_id):
        store.client.delete_run(old.info.run_id)
    for init in {row.cell.init: None for row in rows}:
        percents = sorted({row.cell.percent for row in rows if row.status == "finished" and row.cell.init == init})
        tags = {"role": "curve", "parent": sweep_run_id, "init": init}
        run_id = store.start(TRANSFER, init, parent=sweep_run_id, params={"init": init}, tags=tags)
        metrics = [
            (key, value, percent)
            for key, score in CURVES.items()
            for percent, value in zip(percents, np.nanmean(by_replicate(rows, init, score, percents), axis=0), strict=True)
        ]
        store.log(run_id, metrics=metrics)
        store.end(run_id)


def _claims_text(claims: dict[str, dict[str, Any]]) -> str:
    from sweeps.claims import CLAIMS

    lines = ["The report's four claims, as this sweep sees them:", ""]
    for i, (name, claim) in enumerate(claims.items(), 1):
        lines += [f"{i}. {CLAIMS[name]}: **{claim['verdict']}** ({claim['reason']}).", f"   Observed: {claim['observed']}"]
    return "\n".join(lines) + "\n"


def _print_summary(rows: "Sequence[Row]") -> None:
    """Means over replicates: a line for each fraction."""
    import numpy as np

    from sweeps.table import by_replicate, finished_percents

    percents = finished_percents(rows)
    inits = list({row.cell.init: None for row in rows})
    columns = ["percent"]
    values = []
    for label, score in (("train loss", "final/train_loss"), ("val loss", "final/val_loss"), ("val acc", "final/val_accuracy")):
        for init in inits:
            columns.append(f"{label} {init}")
            values.append([by_replicate(rows, init, score, [percent]) for percent in percents])
    say("Means over replicates, final epoch:")
    cells_text = [
        [f"{np.nanmean(v):.4f}" if not np.isnan(v).all() else "-" for v in column] for column in values
    ]
    print_table(columns, [[str(p), *(column[i] for column in cells_text)] for i, p in enumerate(percents)])


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(TransferSettings, main, "sweeps.transfer", args)


if __name__ == "__main__":
    sys.exit(command())
