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
    """Look for the network and the training that do best on the source half of Fashion-MNIST, train the best again, and
    register the winner for the sweep. A search that was stopped goes on by the same command."""

    trials: int = 24
    """How many networks to try in all; a search that has fewer is topped up to it."""
    epochs: int = 10
    """Passes over the training images in each trial; poor ones are stopped earlier."""
    max_mflops: float | Literal["none"] = 4.0
    """Largest network to try: millions of floating-point operations for one image, forward; none: no limit."""
    seed: int = 0
    """Root of every random draw: equal seeds give equal results on one kind of machine."""
    split: str = "0-4/5-9"
    """SOURCE/TARGET classes: 0-4/5-9, 5-9/0-4, even/odd, odd/even, ten digits 01234/56789, or random:S for a seed S."""
    top: int = 2
    """How many of the best trials are trained again before one is registered, since the best score is partly luck."""
    retrain_seeds: int = 3
    """How often each of them is trained again, by other random draws (--reference: once)."""
    reference: bool = False
    """Do not search: train the original report's network as it was (100 epochs), and register it as cnn2-reference."""
    like: str | None = None
    """Do not search: train the network of this model (models:/cnn2/best) anew, on the source half of --split."""
    promote: bool = False
    """Call the new model `best` even if it is not better than the one so called."""
    study_name: str | None = None
    """Name under which the trials are kept; default: cnn2, and the source classes if --split is given."""
    storage: str | None = None
    """Where the trials are kept; default: optuna.db beside the runs. On postgresql:// several machines may share it."""
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
    device: str = "auto"
    """What to compute on: cpu, cuda, cuda:N, mps, or auto (a GPU if there is one, else the CPU)."""
    precision: Precision = "float32"
    """Arithmetic: float32; bf16 in training steps' forward passes; tf32 in all products on CUDA, evaluation too."""
    timeout: float | None = None
    """Seconds after which no further trial begins; default: no limit."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds to wait for a store that does not answer, before giving up."""
    dry_run: bool = False
    """Only say what is done and what would run; change nothing."""
    reap: bool = False
    """First tidy the store: end runs of processes that died, delete those of trials that were not logged whole."""
    json: Path | None = None
    """Also write the result to this file, as JSON."""
    debug: bool = False
    """Show where in the code an error arose."""

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
