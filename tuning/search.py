"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

    python -m tuning.search                # resumable: run again, it goes on
    python -m tuning.search --reference    # the original report's network and recipe instead, as `cnn2-reference`

Data in; an Optuna study, MLflow runs and a registered model out. Selection looks at validation alone.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmnist_transfer.console import Progress, check_range, duration, print_table, run_command, say, write_json
from fmnist_transfer.errors import UsageError
from fmnist_transfer.parallel import Outcome, StopSignal, parse_workers, run_tasks
from fmnist_transfer.split import Split, parse_split

if TYPE_CHECKING:
    import optuna
    from mlflow.entities.model_registry import ModelVersion

    from fmnist_transfer.data import Half
    from fmnist_transfer.tracking import Store
    from tuning.promote import Candidate
    from tuning.study import TrialPlan


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
    promote: bool = False
    """Point alias `best` to the new model even if it is not better."""
    study_name: str | None = None
    """Default: cnn2, with the split where it is not the default."""
    storage: str | None = None
    """Study database; default: optuna.db beside the tracking store."""
    tracking_uri: str | None = None
    """MLflow store; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Fashion-MNIST's folder; default: FMNIST_DATA_DIR, else the user's cache directory."""
    workers: str = "auto"
    """Training processes, one thread each; auto: one per core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    timeout: float | None = None
    """Seconds after which no further trial is started."""
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
        parse_workers(self.workers)
        parse_split(self.split)

    @property
    def mflops_limit(self) -> float | None:
        return None if self.max_mflops == "none" else self.max_mflops


def main(settings: SearchSettings) -> int:
    """Run the search; 0, or 1 if a trial failed."""
    start = time.perf_counter()
    with StopSignal() as stop:
        result = search(settings, stop)
    failed = result.pop("n_failed")
    if settings.json:
        write_json(settings.json, result | {"seconds": time.perf_counter() - start})
    return 1 if failed else 0


def search(settings: SearchSettings, stop: StopSignal) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it, with `n_failed`."""
    say("Loading torch, mlflow and optuna ...")
    from fmnist_transfer.data import default_data_dir, load_half
    from fmnist_transfer.tracking import open_store
    from fmnist_transfer.training import choose_device

    split = parse_split(settings.split)
    device = str(choose_device(settings.device))
    half = load_half(settings.data_dir or default_data_dir(), split.source).share_memory()
    store = open_store(settings.tracking_uri)
    name = "cnn2-reference" if settings.reference else "cnn2"
    study_name = settings.study_name or name + split.suffix
    with store.owning("search", f"study-{study_name}"):
        if settings.reference:
            result = _reference(settings, store, half, split, device, stop)
        else:
            result = _tune(settings, store, half, split, device, study_name, stop)
    say(f"Compare the runs in the MLflow UI:\n  {store.ui_command}")
    return result


def _tune(
    settings: SearchSettings, store: "Store", half: "Half", split: Split, device: str, study_name: str, stop: StopSignal
) -> dict[str, Any]:
    from optuna.trial import TrialState

    from tuning.figures import search_figures
    from tuning.promote import Candidate
    from tuning.space import SPACE_VERSION, affordable_channels, on_edge
    from tuning.study import TrialPlan, finished, open_study, spec_and_recipe, storage_uri
    from tuning.study_log import StudyLog

    affordable_channels(2, 5, 512, 256, settings.mflops_limit)  # the costliest corner, before any run is created
    uri = storage_uri(settings.storage, store.folder)
    identity = {
        "epochs": settings.epochs,
        "max_mflops": settings.mflops_limit,
        "split": str(split),
        "seed": settings.seed,
        "space": SPACE_VERSION,
        "data_sha256": half.data_sha256,
    }
    study = open_study(uri, study_name, identity)
    log = StudyLog(store, study, identity | {"device": device})
    with store.ending(log.run_id):
        store.log_data(log.run_id, half, "source")
        log.log_finished()
        plan = TrialPlan(uri, study_name, settings.seed, settings.epochs, settings.mflops_limit, device, half)
        for _ in run_trials(settings, study, plan, stop):
            log.log_finished()
        trials = finished(study)
        stop.raise_if_set(f"{len(trials)} of {settings.trials} trials done; run the same command to go on")
        n = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        completed = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: -(t.value or 0))
        say(
            f"{len(trials)} trials of study {study_name!r}: {n[TrialState.COMPLETE]} complete, "
            f"{n[TrialState.PRUNED]} pruned, {n[TrialState.FAIL]} failed"
        )
        if not completed:
            raise UsageError(f"no trial of study {study_name!r} completed; raise --trials")
        for edge in on_edge(completed[0]):
            say(f"note: the best trial lies on the edge of its range: {edge}")
        candidates = [Candidate(*spec_and_recipe(t), t.number, t.value) for t in completed[: settings.top]]
        result = _register(settings, store, half, split, device, log.run_id, study_name, candidates, "cnn2", stop)
        for path, figure in search_figures(study).items():
            store.log_figure(log.run_id, path, figure)
    return result | {
        "n_trials": len(trials),
        "n_pruned": n[TrialState.PRUNED],
        "n_failed": n[TrialState.FAIL],
    }


def run_trials(
    settings: SearchSettings, study: "optuna.Study", plan: "TrialPlan", stop: StopSignal
) -> Iterator[Outcome[int, int]]:
    """Top the study up to `--trials`, within `--timeout`; an outcome for each trial as it ends."""
    from tuning.study import finished, run_trial

    n_before = len(finished(study))
    deadline = time.monotonic() + (settings.timeout if settings.timeout is not None else float("inf"))
    ordinals = (k for k in range(n_before, settings.trials) if time.monotonic() < deadline)
    n_workers = min(parse_workers(settings.workers), max(1, settings.trials - n_before))
    with Progress("trials", max(0, settings.trials - n_before)) as progress:

        def show(ordinal: int, news: tuple[int, float]) -> None:
            epoch, accuracy = news
            progress.working(ordinal, epoch / settings.epochs, f"epoch {epoch}/{settings.epochs}, {accuracy:.2%}")

        for outcome in run_tasks(run_trial, plan, ordinals, n_workers=n_workers, stop=stop, on_report=show):
            progress.finished(outcome.task)
            if outcome.status == "failed":
                say(f"a trial failed: {outcome.reason}")
            yield outcome


def _reference(
    settings: SearchSettings, store: "Store", half: "Half", split: Split, device: str, stop: StopSignal
) -> dict[str, Any]:
    from fmnist_transfer.model import REFERENCE_SPEC
    from fmnist_transfer.recipe import REFERENCE_RECIPE
    from fmnist_transfer.tracking import TUNING
    from tuning.promote import Candidate

    candidates = [Candidate(REFERENCE_SPEC, REFERENCE_RECIPE)]
    params = {"split": split, "seed": settings.seed, "data_sha256": half.data_sha256, "device": device}
    run_id = store.start(TUNING, f"reference {split}", params=params, tags={"role": "study", "study": "reference"})
    with store.ending(run_id):
        store.log_data(run_id, half, "source")
        name = "cnn2-reference"
        result = _register(settings, store, half, split, device, run_id, "reference", candidates, name, stop)
    return result | {"n_trials": 0, "n_pruned": 0, "n_failed": 0}


def _register(
    settings: SearchSettings,
    store: "Store",
    half: "Half",
    split: Split,
    device: str,
    run_id: str,
    study_name: str,
    candidates: "list[Candidate]",
    name: str,
    stop: StopSignal,
) -> dict[str, Any]:
    """Re-train, register, move `best`; or find what an earlier run of the same command registered."""
    from tuning import promote

    name += split.suffix
    n_seeds = 1 if settings.reference else settings.retrain_seeds
    key = promote.promotion_key(candidates, settings.seed, n_seeds, split, half.data_sha256)
    version = promote.registered_before(store, name, key)
    if version is None:
        plan = promote.RetrainingPlan(settings.seed, device, half)
        n_workers = min(parse_workers(settings.workers), len(candidates) * n_seeds)
        retrained = promote.retrain(
            store, run_id, candidates, plan, n_seeds=n_seeds, n_workers=n_workers, stop=stop
        )
        _print_retrained(retrained)
        version = promote.register_winner(
            store,
            name,
            retrained[0],
            split=split,
            study=study_name,
            data_sha256=half.data_sha256,
            seed=settings.seed,
            key=key,
        )
    promoted, message = promote.move_best(store, version, force=settings.promote)
    say(message)
    result = _result(study_name, version, promoted)
    scores = {key: result[key] for key in ("best_of_n", "retrained_mean", "retrained_sd", "test_accuracy")}
    store.log(run_id, metrics=[(key, value, 0) for key, value in scores.items() if value is not None])
    store.log(run_id, tags={"registered": result["model_uri"]})
    return result


def _print_retrained(retrained: Sequence[Any]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    say("Validation accuracy in percent: in the search, and trained again with fresh seeds; test accuracy of the first:")
    print_table(
        ["configuration", "search", "again", "sd", "seeds", "test", "minutes"],
        [
            [
                one.candidate.name,
                percent(one.candidate.search_score),
                percent(one.mean),
                percent(one.sd),
                str(len(one.val_accuracies)),
                percent(one.result.test.accuracy),
                f"{one.result.seconds / 60:.1f}",
            ]
            for one in retrained
        ],
    )


def _result(study_name: str, version: "ModelVersion", promoted: bool) -> dict[str, Any]:
    def number(key: str) -> float | None:
        text = version.tags.get(key, "None")
        return None if text == "None" else float(text)

    return {
        "study": study_name,
        "model_uri": f"models:/{version.name}/{version.version}",
        "version": int(version.version),
        "promoted": promoted,
        "best_of_n": number("best_of_n"),
        "retrained_mean": number("retrained_mean"),
        "retrained_sd": number("retrained_sd"),
        "test_accuracy": number("test_accuracy"),
    }


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(SearchSettings, main, "tuning.search", args)


if __name__ == "__main__":
    sys.exit(command())
