"""Train the registered network on fractions of FMNIST-1, from pretrained and from random weights.

    python -m sweeps.transfer --model-uri models:/cnn2/best        # resumable: run again, it goes on

A registered model and data in; an MLflow run for each fraction x init x replicate out, and on their parent the curves,
the table, and what the sweep says of the report's four claims.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmnist_transfer.console import (
    Stopwatch,
    check_distinct,
    check_range,
    command_line,
    print_pairs,
    run_command,
    say,
    write_json,
)
from fmnist_transfer.database import check_driver
from fmnist_transfer.errors import UsageError
from fmnist_transfer.parallel import Engine, Workers, check_engine, device_of_tasks, parse_workers, workers_for
from fmnist_transfer.patience import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Patience
from fmnist_transfer.recipe import Precision, Recipe
from fmnist_transfer.split import digits
from fmnist_transfer.stopping import StopSignal
from sweeps.grid import REPORTED, TUNING_REPLICATE, Grid, Init, by_fraction
from sweeps.report import place_of


@dataclass(frozen=True)
class TransferSettings:
    """Train on 5 %, 10 %, ... 100 % of one half of Fashion-MNIST, from the weights of a network tuned on the other half
    and from random ones, and judge what that says of transfer. A sweep that was stopped goes on by the same command."""

    model_uri: str
    """The network to start from: models:/NAME/ALIAS, models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/NAME."""
    fractions: tuple[int, ...] = tuple(range(5, 101, 5))
    """Shares of the target's training images to train on, in whole percent from 1 to 100."""
    inits: tuple[Init, ...] = REPORTED
    """How networks start: pretrained and random are the question, the others controls; selffer trains twice."""
    replicates: int = 3
    """How often all of it is trained, each time by other random draws. From 6 on there are verdicts."""
    recipe: Literal["model", "tuned"] = "model"
    """How to train. model: all as the network was; tuned: each init by the best of nine (54 more trainings an init)."""
    pretrain_replicates: int = 0
    """Train so many source networks first, one for each replicate to start from; 0: all start from --model-uri's."""
    epochs: int | None = None
    """Passes over the training images; default: as many as the network of --model-uri was trained for."""
    budget: Literal["epochs", "steps"] = "epochs"
    """What is equal at each fraction: epochs, passes over its images; steps, optimiser steps (as many as at 100 %)."""
    seed: int = 0
    """Root of every random draw: equal seeds give equal results on one kind of machine."""
    tracking_uri: str | None = None
    """Where runs and models are kept: a file or a server's URI; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Folder of Fashion-MNIST, which is fetched if it is not there; default: FMNIST_DATA_DIR, else the user's cache."""
    workers: str = "auto"
    """Trainings at once, each a process of one thread; auto: one for each core that this command may use."""
    engine: Engine = "local"
    """Where to train: local, on this machine; ray, on the Ray cluster at RAY_ADDRESS, else on one of this machine."""
    gpus_per_task: float = 0.0
    """With --engine ray: GPUs for each training, 0.25 for four on one GPU; 0 trains on the CPU."""
    join: bool = False
    """Help the command that works on this sweep already, from this machine or any that reaches the store."""
    device: str = "auto"
    """What to compute on: cpu, cuda, cuda:N, mps, or auto (a GPU if there is one, else the CPU)."""
    stack: bool = False
    """Train all networks of a fraction as one computation: meant for a GPU, slower on a CPU."""
    precision: Precision = "float32"
    """Arithmetic: float32; bf16 in training steps' forward passes; tf32 in all products on CUDA, evaluation too."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds to wait for a store that does not answer, before giving up."""
    dry_run: bool = False
    """Only say what is done and what would run; change nothing."""
    retry_failed: bool = False
    """Also repeat trainings whose loss became infinite; they will fail again unless something else has changed."""
    reap: bool = False
    """First tidy the store: end runs of processes that died, delete this sweep's runs that count for nothing."""
    json: Path | None = None
    """Also write the result to this file, as JSON."""
    debug: bool = False
    """Show where in the code an error arose."""

    def __post_init__(self) -> None:
        check_distinct("--fractions", self.fractions)
        check_distinct("--inits", self.inits)
        for percent in self.fractions:
            check_range("--fractions", percent, 1, 100)
        check_range("--replicates", self.replicates, 1, TUNING_REPLICATE)
        check_range("--seed", self.seed, 0)
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)
        check_range("--pretrain-replicates", self.pretrain_replicates, 0)
        n_replicates = max(self.replicates, 2) if self.recipe == "tuned" else self.replicates
        if 0 < self.pretrain_replicates < n_replicates:
            raise UsageError(
                f"--pretrain-replicates {self.pretrain_replicates}: each of the {n_replicates} replicates needs a "
                "source network of its own"
            )
        if self.stack and self.recipe == "tuned":
            raise UsageError("--stack trains the cells of a fraction by one recipe: leave it out with --recipe tuned")
        if self.dry_run and self.reap:
            raise UsageError("--dry-run changes nothing: leave out --reap")
        if self.epochs is not None:
            check_range("--epochs", self.epochs, 1)
        parse_workers(self.workers)
        check_engine(self.engine, self.gpus_per_task)
        if self.join and (self.pretrain_replicates or self.reap or self.dry_run):
            raise UsageError("--join only trains cells: leave out --pretrain-replicates, --reap and --dry-run")
        check_driver("--tracking-uri", self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))


def main(settings: TransferSettings) -> int:
    """Run the sweep; 0, or 1 if a cell failed."""
    stopwatch = Stopwatch()
    with StopSignal() as stop:
        result = sweep(settings, stop, stopwatch)
    say(f"The sweep took {stopwatch}")
    if settings.json:
        from sweeps.runs import FIRST_STEP

        times = {"seconds": stopwatch.seconds, "stages": stopwatch.stages, FIRST_STEP: stopwatch.marks.get(FIRST_STEP)}
        write_json(settings.json, result | times)
    return 1 if any(cell["status"] == "failed" for cell in result["cells"]) else 0


def sweep(settings: TransferSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it."""
    say("Loading torch and mlflow ...")
    device = device_of_tasks(settings.device, settings.precision, settings.engine, settings.gpus_per_task)
    grid = Grid(settings.fractions, settings.inits, settings.replicates)
    cells = grid.cells()
    n_tasks = max(settings.pretrain_replicates, len(by_fraction(cells)) if settings.stack else len(cells))
    if settings.recipe == "tuned":
        from sweeps.tuned import tuning_cells

        n_tasks = max(n_tasks, len(tuning_cells(settings.inits, Recipe())))
    if settings.dry_run:
        n_tasks = 1
    with workers_for(settings, device, n_tasks, stop) as workers:
        return _sweep(settings, grid, workers, device=device, stop=stop, stopwatch=stopwatch)


def _sweep(
    settings: TransferSettings, grid: Grid, workers: Workers, *, device: str, stop: StopSignal, stopwatch: Stopwatch
) -> dict[str, Any]:
    from fmnist_transfer.data import default_data_dir, load_half
    from fmnist_transfer.registry import load, resolve
    from fmnist_transfer.tracking import open_store
    from sweeps.cells import plan_for
    from sweeps.ledger import Ledger, identity
    from sweeps.stages import SweepContext, dry_run, sweep_or_help
    from sweeps.statistics import MIN_REPLICATES

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
    check_arms(settings, plan.recipe.epochs)
    if plan.spec.n_classes != model.spec.n_classes:
        say(
            f"The model has {model.spec.n_classes} outputs and the target {plan.spec.n_classes} classes: "
            "its classifier is reset anyway"
        )
    name = f"{reference.pinned.removeprefix('models:/')} on classes {digits(half.classes)}"
    sweep_identity = identity(
        model, plan, tuned=settings.recipe == "tuned", pretraining=settings.pretrain_replicates > 0
    )
    context = SweepContext(settings, store, model, plan, grid, name, workers, stop, stopwatch)
    context.with_images(grid.cells())  # a fraction without an image is told before anything is begun
    stopwatch.lap("start")
    if settings.dry_run:
        return dry_run(context, Ledger(store, sweep_identity, half))
    result = sweep_or_help(context, sweep_identity, reference)
    n_more = next((n for n in (MIN_REPLICATES, 10) if n > settings.replicates), settings.replicates + 10)
    sources = n_more if settings.pretrain_replicates else 0  # each replicate needs one
    changes = {"model_uri": reference.pinned, "replicates": n_more, "pretrain_replicates": sources, "json": None}
    more = command_line("sweeps.transfer", settings, **changes)
    print_pairs(
        "Look next",
        {
            "in a browser": f"{store.show_command}  # curves, report, every run",
            "on paper": place_of(result["sweep_run_id"]),
            "go on": f"{more}  # extends this sweep",
        },
    )
    return result | {"model_uri": reference.pinned, "split": str(model.split)}


def check_arms(settings: TransferSettings, epochs: int) -> None:
    """Raise UsageError for an init that these settings leave no room for."""
    from sweeps.arms import STACKABLE, probing_epochs

    if "lp-ft" in settings.inits:
        probing_epochs(epochs)
    if settings.stack and (apart := [init for init in settings.inits if init not in STACKABLE]):
        raise UsageError(f"--stack trains whole networks, once each: leave it out with --inits {' '.join(apart)}")


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(TransferSettings, main, "sweeps.transfer", args)


if __name__ == "__main__":
    sys.exit(command())
