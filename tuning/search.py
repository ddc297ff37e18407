"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

    python -m tuning.search                # resumable: run again, it goes on
    python -m tuning.search --reference    # the original report's network and recipe instead, as `cnn2-reference`
    python -m tuning.search --split even/odd --like models:/cnn2/best    # a registered configuration on another half

Data in; an Optuna study, MLflow runs and a registered model out. Selection looks at validation alone.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmnist_transfer.console import Stopwatch, check_range, command_line, print_pairs, run_command, say, write_json
from fmnist_transfer.database import POSTGRESQL, check_driver
from fmnist_transfer.errors import UsageError
from fmnist_transfer.parallel import Engine, Workers, check_engine, device_of_tasks, parse_workers, workers_for
from fmnist_transfer.patience import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Patience
from fmnist_transfer.recipe import Precision
from fmnist_transfer.split import parse_split
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.tracking import Store


@dataclass(frozen=True)
class SearchSettings:
    """Tune CNN2 on the source half of Fashion-MNIST, and register the best."""

    trials: int = 24
    """Trials of the study in all; a study that is resumed is topped up to it."""
    epochs: int = 10
    """Epochs of a trial that is not pruned."""
    max_mflops: float | Literal["none"] = 4.0
    """Limit of the network's forward cost for one image, in millions of floating-point operations."""
    seed: int = 0
    """Root of every random stream."""
    split: str = "0-4/5-9"
    """SOURCE/TARGET classes: 0-4/5-9, 5-9/0-4, even/odd, odd/even, ten digits 01234/56789, or random:S."""
    top: int = 2
    """How many of the best configurations are trained again."""
    retrain_seeds: int = 3
    """Fresh seeds of each of them (the reference takes one)."""
    reference: bool = False
    """Train the original report's network with its recipe (100 epochs) instead of searching."""
    like: str | None = None
    """Train the configuration of this registered model on --split's source half instead of searching."""
    promote: bool = False
    """Point alias `best` to the new model even if it is not better."""
    study_name: str | None = None
    """Default: cnn2, with the split where it is not the default."""
    storage: str | None = None
    """Study database; default: optuna.db beside the tracking store. On postgresql:// several machines share a study."""
    tracking_uri: str | None = None
    """MLflow store; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Fashion-MNIST's folder; default: FMNIST_DATA_DIR, else the user's cache directory."""
    workers: str = "auto"
    """Training processes, one thread each; auto: one per core."""
    engine: Engine = "local"
    """local: processes of this machine; ray: the nodes of a Ray cluster (RAY_ADDRESS, else this machine's)."""
    gpus_per_task: float = 0.0
    """With ray: share of a GPU for each training, 0.25 say; more than 0 trains on CUDA."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Precision = "float32"
    """bf16: of the training steps' forward passes; tf32: of every product on CUDA, evaluation too."""
    timeout: float | None = None
    """Seconds after which no further trial is started."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds for which a store that does not answer is waited for."""
    dry_run: bool = False
    """Only say what is done and what would run."""
    reap: bool = False
    """First end what dead processes left RUNNING in the store, and delete runs of trials that were not logged whole."""
    json: Path | None = None
    """Write the result to this file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_range("--trials", self.trials, 1)
        check_range("--epochs", self.epochs, 1)
        check_range("--top", self.top, 1)
        check_range("--retrain-seeds", self.retrain_seeds, 1)
        check_range("--seed", self.seed, 0)
        if self.max_mflops != "none":
            check_range("--max-mflops", self.max_mflops, 0)
        if self.timeout is not None:
            check_range("--timeout", self.timeout, 0)
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)
        if self.dry_run and self.reap:
            raise UsageError("--dry-run changes nothing: leave out --reap")
        if self.reference or self.like is not None:
            self._check_no_search()
        if self.study_name is not None and not re.fullmatch(r"[\w.-]+", self.study_name):
            raise UsageError(f"--study-name {self.study_name}: use letters, digits, '_', '.' and '-'")
        parse_workers(self.workers)
        self._check_cluster()
        parse_split(self.split)

    def _check_cluster(self) -> None:
        """Raise UsageError for what is not installed, or cannot be shared by machines."""
        check_engine(self.engine, self.gpus_per_task)
        check_driver("--tracking-uri", self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        check_driver("--storage", self.storage)
        is_search = not self.reference and self.like is None
        if self.engine == "ray" and is_search and not (self.storage or "").startswith(POSTGRESQL):
            raise UsageError(
                "--engine ray: trials on other machines cannot use a study in a sqlite file; give --storage "
                "postgresql://... (docs/cluster.md says how)"
            )

    def _check_no_search(self) -> None:
        """Raise UsageError for a flag of a search where there is none."""
        flag = "--reference" if self.reference else "--like"
        fixed = ["trials", "epochs", "max_mflops", "top", "study_name", "storage", "timeout"]
        fixed += ["retrain_seeds", "like"] if self.reference else []
        given = [name for name in fixed if getattr(self, name) != getattr(SearchSettings, name)]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{flag} trains one fixed network by one fixed recipe: leave out {flags}")

    @property
    def mflops_limit(self) -> float | None:
        return None if self.max_mflops == "none" else self.max_mflops


def main(settings: SearchSettings) -> int:
    """Run the search; 0, or 1 if a trial failed."""
    stopwatch = Stopwatch()
    with StopSignal() as stop:
        result = search(settings, stop, stopwatch)
    say(f"The search took {stopwatch}")
    failed = result.pop("n_failed")
    if settings.json:
        write_json(settings.json, result | {"seconds": stopwatch.seconds, "stages": stopwatch.stages})
    return 1 if failed else 0


def search(settings: SearchSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it, with `n_failed`."""
    say("Loading torch, mlflow and optuna ...")
    device = device_of_tasks(settings.device, settings.precision, settings.engine, settings.gpus_per_task)
    n_tasks = max(settings.trials, settings.top * settings.retrain_seeds)
    if settings.like is not None:
        n_tasks = settings.retrain_seeds
    if settings.reference or settings.dry_run:
        n_tasks = 1
    with workers_for(settings, device, n_tasks, stop) as workers:
        return _search(settings, device, workers, stop, stopwatch)


def _search(
    settings: SearchSettings, device: str, workers: Workers, stop: StopSignal, stopwatch: Stopwatch
) -> dict[str, Any]:
    from fmnist_transfer.data import default_data_dir, load_half
    from fmnist_transfer.tracking import open_store
    from fmnist_transfer.ui import TUNING
    from tuning.fixed import reference_configuration, registered_configuration, train_fixed
    from tuning.stages import SearchContext, dry_run, tune_or_help

    split = parse_split(settings.split)
    half = load_half(settings.data_dir or default_data_dir(), split.source).share_memory()
    store = open_store(settings.tracking_uri, Patience(settings.store_timeout, stop.is_set))
    context = SearchContext(settings, store, half, split, device, workers, stop, stopwatch)
    if settings.reap:
        say(f"Reaped: {store.reap(TUNING)} runs of dead processes ended as KILLED")
    fixed = None
    if settings.reference:
        fixed = reference_configuration(split)
    elif settings.like is not None:
        fixed = registered_configuration(context, settings.like)
    if fixed:
        study_name, uri = fixed.study, store.uri
    else:
        from tuning.storage import storage_uri

        study_name = settings.study_name or f"cnn2{split.suffix}"
        uri = storage_uri(settings.storage, store.folder, store.patience)
    if settings.dry_run:
        return dry_run(context, uri, study_name, fixed)
    result = train_fixed(context, fixed) if fixed else tune_or_help(context, uri, study_name)
    stopwatch.lap("registering")
    print_pairs("Look next", _next(settings, store, result))
    return result


def _next(settings: SearchSettings, store: "Store", result: dict[str, Any]) -> dict[str, str]:
    """What the user may do now -> the command."""
    found = {"in a browser": f"{store.show_command}  # trials, models"}
    if uri := result.get("model_uri"):
        model = uri.rpartition("/")[0] + "/best" if result["promoted"] else uri
        place = f" --tracking-uri {shlex.quote(settings.tracking_uri)}" if settings.tracking_uri else ""
        found = {"transfer it": f"python -m sweeps.transfer --model-uri {model}{place}"} | found
    if not settings.reference and settings.like is None:
        more = command_line("tuning.search", settings, trials=2 * settings.trials, json=None)
        found["search on"] = f"{more}  # tops this study up"
    return found


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(SearchSettings, main, "tuning.search", args)


if __name__ == "__main__":
    sys.exit(command())
