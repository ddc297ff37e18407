"""Flags that several commands share, and what they say about workers and devices. Imports no torch and no mlflow.

A command's settings inherit these groups, its own flags last: `class ReportSettings(CommandFlags, ..., ReportFlags)`.
`--help` lists them in the opposite order, the command's own first.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_transfer.errors import UsageError
from fmnist_transfer.store.places import POSTGRESQL
from fmnist_transfer.store.retry import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS
from fmnist_transfer.terminal.command import check_range
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.terminal.process import check_open_files
from fmnist_transfer.training.recipe import Precision
from fmnist_transfer.workers.run import Workers, available_cores
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Engine

MOST_WORKERS = 10_000
# Flags of one run of a command, which a command to go on with does not repeat.
ONE_TIME: dict[str, Any] = {"json": None, "mend_copy": False, "take_over": False, "retry_failed": False}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The end of the chain of `__post_init__`: each group checks its own flags, then calls the next."""

    def __post_init__(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CommandFlags(Flags):
    debug: bool = False
    """Show where in the code an error arose."""


@dataclass(frozen=True, kw_only=True)
class OutputFlags(Flags):
    json: Path | None = None
    """Also write the result to this file, as JSON."""


@dataclass(frozen=True, kw_only=True)
class StoreFlags(Flags):
    tracking_uri: str | None = None
    """Where runs and models are kept: a file or a server's URI; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds to wait for a store that does not answer, before giving up."""
    mend_copy: bool = False
    """If the store is a copy of another, let its runs find the copied files from now on, not the original's."""

    def __post_init__(self) -> None:
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)
        check_driver("--tracking-uri", self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class SweepFlags(Flags):
    sweep: str = "latest"
    """Which sweep: the id of its run, or latest."""


@dataclass(frozen=True, kw_only=True)
class MachineFlags(Flags):
    data_dir: Path | None = None
    """Folder of Fashion-MNIST, which is fetched if it is not there; default: FMNIST_DATA_DIR, else the user's cache."""
    workers: str = "auto"
    """Trainings at once, each a process of one thread; auto: one for each core that this command may use."""
    device: str = "auto"
    """What to compute on: cpu, cuda, cuda:N, mps, or auto (a GPU if there is one, else the CPU)."""

    def __post_init__(self) -> None:
        parse_workers(self.workers)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(Flags):
    seed: int = 0
    """Root of every random draw: equal seeds give equal results on one kind of machine."""
    precision: Precision = "float32"
    """Arithmetic: float32; bf16 in training steps' forward passes; tf32 in all products on CUDA, evaluation too."""
    engine: Engine = "local"
    """Where to train: local, on this machine; ray, on the Ray cluster at RAY_ADDRESS, else on one of this machine."""
    gpus_per_task: float = 0.0
    """With --engine ray: GPUs for each training, 0.25 for four on one GPU; 0 trains on the CPU."""
    dry_run: bool = False
    """Only say what is done and what would run; change nothing."""
    take_over: bool = False
    """Go on with what another machine was running, and end its runs: only if that machine is gone for good."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0)
        check_engine(self.engine, self.gpus_per_task)
        if self.dry_run and self.take_over:
            raise UsageError("--dry-run changes nothing: leave out --take-over")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(CommandFlags, OutputFlags, StoreFlags, MachineFlags, TrainingFlags):
    """Everything but the own flags of a command that trains and logs."""


def parse_workers(text: str) -> int | None:
    """A number, or None for `auto`. Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise UsageError(f"--workers {text}: must be auto or a number from 1 to {MOST_WORKERS}")
    return int(text)


def count_workers(text: str, device: str, n_tasks: int, engine: Engine = "local") -> int:
    """Number of workers for `--workers`, at most one per task.

    `auto`: one per core, or one for an accelerator; on a cluster one per task, of which it starts what it has room for.
    """
    available = n_tasks if engine == "ray" else available_cores() if device == "cpu" else 1
    return max(1, min(parse_workers(text) or available, n_tasks))


def workers_for(settings: TrainingSettings, device: str, n_tasks: int, stop: StopSignal) -> Workers:
    """Workers as the command's flags describe them; a dry run contacts no cluster."""
    n = count_workers(settings.workers, device, n_tasks, settings.engine)
    if settings.engine == "local":
        check_open_files(n)
    return Workers(
        n,
        stop,
        apart=device != "cpu",
        engine="local" if settings.dry_run else settings.engine,
        gpus_per_task=settings.gpus_per_task,
    )


def device_of_tasks(device: str, precision: Precision, engine: Engine, gpus_per_task: float) -> str:
    """The device that tasks train on: this machine's, or on a cluster what the flags say.

    Raises UsageError for a device that is missing, or that does not know the precision.
    """
    if engine == "local":
        from fmnist_transfer.training.device import choose_device

        return str(choose_device(device, precision))
    if device.startswith("cuda") and not gpus_per_task:
        raise UsageError(f"--device {device} --engine ray: give --gpus-per-task, by which Ray shares the GPUs out")
    kind = device if device != "auto" else "cuda" if gpus_per_task else "cpu"
    if precision == "tf32" and kind != "cuda":
        raise UsageError(f"--precision tf32: {kind} has none; use float32 or bf16, or give --gpus-per-task")
    return kind


def check_engine(engine: Engine, gpus_per_task: float) -> None:
    """Raise UsageError for an engine that is not installed, or an impossible share of a GPU."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs: pip install 'fmnist-transfer[ray]'")
    if gpus_per_task and engine != "ray":
        raise UsageError(
            f"--gpus-per-task {gpus_per_task:g}: only with --engine ray; --workers share this machine's GPU"
        )
    if not (0 <= gpus_per_task <= 1 or (1 < gpus_per_task < math.inf and gpus_per_task == int(gpus_per_task))):
        raise UsageError(f"--gpus-per-task {gpus_per_task:g}: must be from 0 to 1, or a whole number")


def check_driver(flag: str, uri: str | None) -> None:
    """Raise UsageError if the URI's database driver is not installed."""
    if uri is None or not uri.startswith(POSTGRESQL):
        return
    import sqlalchemy

    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise UsageError(f"{flag} {masked(uri)} needs: pip install 'fmnist-transfer[postgres]'") from error
    except sqlalchemy.exc.ArgumentError as error:
        raise UsageError(f"{flag} {masked(uri)}: no database URI; write postgresql://USER@HOST/DATABASE") from error
