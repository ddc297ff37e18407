"""Flags that several commands share, and the device, precision and workers that they select. Imports torch late."""

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_transfer.errors import UsageError
from fmnist_transfer.store.places import POSTGRESQL
from fmnist_transfer.store.retry import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS
from fmnist_transfer.terminal.command import check_range
from fmnist_transfer.terminal.output import masked, say
from fmnist_transfer.training.recipe import Precision, PrecisionFlag
from fmnist_transfer.workers.run import Workers, available_cores
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Engine

MOST_WORKERS = 10_000
# These flags are for one run only; a suggested follow-up command leaves them out.
ONE_TIME: dict[str, Any] = {"json": None, "mend_copy": False, "take_over": False, "retry_failed": False}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Base of the groups of flags: each checks its own, then calls the next. Settings inherit a command's own last."""

    def __post_init__(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CommandFlags(Flags):
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class OutputFlags(Flags):
    json: Path | None = None
    """Also write the result to this file, as JSON."""


@dataclass(frozen=True, kw_only=True)
class StoreFlags(Flags):
    tracking_uri: str | None = None
    """Store of runs: a file, http:// or postgresql:// URI; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds to wait for a store that does not answer before giving up."""
    mend_copy: bool = False
    """If the store is a copy, make its runs use the copied files from now on, not the original's."""

    def __post_init__(self) -> None:
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)
        check_driver("--tracking-uri", self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class SweepFlags(Flags):
    sweep: str = "latest"
    """Run id of the sweep, or latest."""


@dataclass(frozen=True, kw_only=True)
class MachineFlags(Flags):
    data_dir: Path | None = None
    """Folder of Fashion-MNIST, fetched if missing; default: FMNIST_DATA_DIR, else the user's cache."""
    workers: str = "auto"
    """Trainings at once, each a process of one thread; auto: one per core that this command may use, one on a GPU."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:N, mps, or auto (a GPU if there is one, else the CPU)."""

    def __post_init__(self) -> None:
        if self.workers != "auto" and not (self.workers.isdecimal() and 1 <= int(self.workers) <= MOST_WORKERS):
            raise UsageError(f"--workers {self.workers}: must be auto or a number from 1 to {MOST_WORKERS}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(Flags):
    seed: int = 0
    """Seed of all random draws; equal seeds give equal results on the same kind of machine."""
    precision: PrecisionFlag = "auto"
    """Number format of training. auto: bf16 if the CPU or GPU is made for it, else float32; tf32: needs CUDA. Scores of
    finished trainings are always computed in float32."""
    engine: Engine = "local"
    """Place of the trainings. local: this machine; ray: the cluster at RAY_ADDRESS, else one of this machine."""
    gpus_per_task: float = 0.0
    """With --engine ray: GPUs per training, such as 0.25 for four on one GPU; 0 trains on the CPU."""
    dry_run: bool = False
    """Only print what has been done and what would run; change nothing."""
    take_over: bool = False
    """Continue what another machine was running and end its runs. Use this only if that machine is gone for good."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0)
        share = self.gpus_per_task
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise UsageError("--engine ray needs: pip install 'fmnist-transfer[ray]'")
        if share and self.engine != "ray":
            raise UsageError(f"--gpus-per-task {share:g}: only with --engine ray; --workers share this machine's GPU")
        if not (0 <= share <= 1 or (1 < share < math.inf and share == int(share))):
            raise UsageError(f"--gpus-per-task {share:g}: must be from 0 to 1, or a whole number")
        if self.dry_run and self.take_over:
            raise UsageError("--dry-run changes nothing; leave out --take-over")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(CommandFlags, OutputFlags, StoreFlags, MachineFlags, TrainingFlags):
    """Shared flags of the commands that train and log."""


class Machine(NamedTuple):
    """Device, precision and workers of a command that trains."""

    device: str
    precision: Precision
    workers: Workers


def count_workers(text: str, device: str, n_tasks: int, engine: Engine = "local") -> int:
    """Return the number of workers for `--workers`, at most one per task; a cluster starts as many of them as fit."""
    available = n_tasks if engine == "ray" else available_cores() if device == "cpu" else 1
    return max(1, min(available if text == "auto" else int(text), n_tasks))


@contextlib.contextmanager
def machine_for(settings: TrainingSettings, n_tasks: int, stop: StopSignal) -> Iterator[Machine]:
    """Yield device, precision and workers until the block ends. A dry run starts no process and contacts no cluster."""
    say("Loading torch and mlflow ...")
    device = device_of_tasks(settings)
    from fmnist_transfer.training.device import resolve_precision

    precision, reason = resolve_precision(settings.precision, device)
    if settings.precision == "auto":
        say(f"Precision {precision}: {reason}")
    n = count_workers(settings.workers, device, n_tasks, settings.engine)
    if settings.dry_run:
        workers = Workers(1, stop)
    elif settings.engine == "local":
        workers = Workers(n, stop, apart=device != "cpu")
    else:
        bf16_on = device if precision == "bf16" else None
        workers = Workers(n, stop, engine="ray", gpus_per_task=settings.gpus_per_task, bf16_on=bf16_on)
    with workers:
        yield Machine(device, precision, workers)


def device_of_tasks(settings: TrainingSettings) -> str:
    """Return the device to train on. Raises UsageError if it is missing or does not support the precision."""
    if settings.engine == "local":
        from fmnist_transfer.training.device import choose_device

        return str(choose_device(settings.device, settings.precision))
    device = settings.device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device} --engine ray: use auto, cpu or cuda; which GPU a task gets is up to Ray")
    if device == "cuda" and not settings.gpus_per_task:
        raise UsageError(f"--device {device} --engine ray: Ray assigns GPUs by --gpus-per-task; give it, too")
    if device == "auto":
        device = "cuda" if settings.gpus_per_task else "cpu"
    if settings.precision == "tf32" and device != "cuda":
        raise UsageError(f"--precision tf32: {device} has none; use auto, or give --gpus-per-task")
    return device


def check_driver(flag: str, uri: str | None) -> None:
    """Raise UsageError for a malformed URI of PostgreSQL, or if its driver is not installed."""
    if uri is None or not uri.startswith(POSTGRESQL):
        return
    import sqlalchemy

    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except (ImportError, sqlalchemy.exc.ArgumentError) as error:
        needs = "postgresql://USER@HOST/DATABASE needs: pip install 'fmnist-transfer[postgres]'"
        raise UsageError(f"{flag} {masked(uri)}: {error}; {needs}") from error
