"""Tune CNN2 on FMNIST-2, train the best again, register the winner as `cnn2` and point alias `best` to it.

    python -m tuning.search                # resumable: run again, it goes on
    python -m tuning.search --reference    # the original report's network and recipe instead, as `cnn2-reference`
    python -m tuning.search --split even/odd --like models:/cnn2/best    # a registered configuration on another half

Data in; an Optuna study, MLflow runs and a registered model out. Selection looks at validation alone.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmnist_transfer.console import Stopwatch, check_range, run_command, say, write_json
from fmnist_transfer.errors import UsageError, UserError
from fmnist_transfer.ownership import owning
from fmnist_transfer.parallel import Workers, count_workers, parse_workers
from fmnist_transfer.patience import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Patience
from fmnist_transfer.recipe import Precision
from fmnist_transfer.split import Split, parse_split
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.data import Half
    from fmnist_transfer.tracking import Store
    from tuning.retraining import Candidate


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
    """Study database; default: optuna.db beside the tracking store."""
    tracking_uri: str | None = None
    """MLflow store; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Fashion-MNIST's folder; default: FMNIST_DATA_DIR, else the user's cache directory."""
    workers: str = "auto"
    """Training processes, one thread each; auto: one per core."""
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
        parse_split(self.split)

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


@dataclass(frozen=True)
class SearchContext:
    """What every stage of the command needs."""

    settings: SearchSettings
    store: "Store"
    half: "Half"
    split: Split
    device: str
    workers: Workers
    stop: StopSignal
    stopwatch: Stopwatch


def search(settings: SearchSettings, stop: StopSignal, stopwatch: Stopwatch) -> dict[str, Any]:
    """The whole command; the result as `--json` writes it, with `n_failed`."""
    say("Loading torch, mlflow and optuna ...")
    from fmnist_transfer.training import choose_device

    device = str(choose_device(settings.device, settings.precision))
    n_tasks = max(settings.trials, settings.top * settings.retrain_seeds)
    if settings.like is not None:
        n_tasks = settings.retrain_seeds
    if settings.reference or settings.dry_run:
        n_tasks = 1
    with Workers(count_workers(settings.workers, device, n_tasks), stop, apart=device != "cpu") as workers:
        return _search(settings, device, workers, stop, stopwatch)


def _search(
    settings: SearchSettings, device: str, workers: Workers, stop: StopSignal, stopwatch: Stopwatch
) -> dict[str, Any]:
    from fmnist_transfer.data import default_data_dir, load_half
    from fmnist_transfer.tracking import TUNING, open_store

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
    with owning(uri, "search", f"study-{study_name}"):
        result = train_fixed(context, fixed) if fixed else tune(context, uri, study_name)
    stopwatch.lap("registering")
    say(f"Compare the runs in the MLflow UI:\n  {context.store.ui_command}")
    return result


def tune(context: SearchContext, uri: str, study_name: str) -> dict[str, Any]:
    """Run the study's missing trials, then train the best again and register the winner."""
    from tuning.figures import search_figures
    from tuning.retraining import Candidate
    from tuning.space import SPACE_VERSION, check_limit, on_edge
    from tuning.storage import patient_storage
    from tuning.study import TrialPlan, finished, open_study, spec_and_recipe
    from tuning.study_log import StudyLog
    from tuning.trials import run_trials

    settings, store, half = context.settings, context.store, context.half
    check_limit(settings.mflops_limit)
    identity = {
        "epochs": settings.epochs,
        "max_mflops": settings.mflops_limit,
        "split": str(context.split),
        "seed": settings.seed,
        "space": SPACE_VERSION,
        "data_sha256": half.data_sha256,
    }
    if settings.precision != "float32":  # studies of before know no other
        identity["precision"] = settings.precision
    study = open_study(patient_storage(uri, store.patience), study_name, identity)
    n_failed_before = sum(trial.state.name == "FAIL" for trial in finished(study))
    log = StudyLog(store, study, identity | {"device": context.device}, half)
    with store.ending(log.run_id):
        store.log_data(log.run_id, half, "source")
        if settings.reap:
            say(f"Reaped: {log.delete_ghosts()} runs of trials that were not logged whole deleted")
        log.log_finished()
        plan = TrialPlan(
            uri,
            study_name,
            settings.seed,
            settings.epochs,
            settings.mflops_limit,
            context.device,
            settings.precision,
            half,
            settings.store_timeout,
        )
        context.stopwatch.lap("start")
        run_trials(
            study, log, plan, n=settings.trials, timeout=settings.timeout, workers=context.workers, debug=settings.debug
        )
        context.stopwatch.lap("trials")
        trials = finished(study)
        context.stop.raise_if_set(f"{len(trials)} of {settings.trials} trials done; run the same command to go on")
        n = Counter(trial.state.name for trial in trials)
        say(
            f"{len(trials)} trials of study {study_name!r}: {n['COMPLETE']} complete, {n['PRUNED']} pruned, "
            f"{n['FAIL']} failed"
        )
        completed = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: -(t.value or 0))
        if not completed:
            raise UserError(
                f"no trial of study {study_name!r} completed, of {len(trials)} run; its runs in MLflow say why. "
                "More --trials or a longer --timeout go on with it"
            )
        for edge in on_edge(completed[0]):
            say(f"note: the best trial lies on the edge of its range: {edge}")
        for path, figure in search_figures(study).items():
            store.log_figure(log.run_id, path, figure)
        context.stopwatch.lap("figures")
        candidates = [Candidate(*spec_and_recipe(t), t.number, t.value) for t in completed[: settings.top]]
        result = register_best(
            context,
            log.run_id,
            candidates,
            study=study_name,
            name=f"cnn2{context.split.suffix}",
            n_seeds=settings.retrain_seeds,
        )
    n_failed = n["FAIL"] - n_failed_before + result["n_failed"]
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n_failed}


def dry_run(context: SearchContext, uri: str, study_name: str, fixed: "FixedConfiguration | None") -> dict[str, Any]:
    """Say what is done and what would run; no trial is begun and no run is made."""
    from tuning.storage import patient_storage
    from tuning.study import find_study, finished

    settings = context.settings
    if fixed:
        name, epochs = fixed.candidate.name, fixed.candidate.recipe.epochs
        say(f"A configuration ({name}) would be trained for {epochs} epochs and registered as {fixed.name}")
        return {"study": study_name, "n_trials": 0, "n_to_run": 0, "n_failed": 0}
    study = find_study(patient_storage(uri, context.store.patience), study_name)
    n_done = len(finished(study)) if study else 0
    n_to_run = max(0, settings.trials - n_done)
    say(f"Study {study_name!r}{'' if study else ', a new one'}: {n_done} trials done, {n_to_run} would run")
    say(
        f"Then the best {settings.top} would be trained again, {settings.retrain_seeds} seeds each, and one "
        "registered, unless they are there"
    )
    return {"study": study_name, "n_trials": n_done, "n_to_run": n_to_run, "n_failed": 0}


@dataclass(frozen=True)
class FixedConfiguration:
    """What is trained without a search."""

    candidate: "Candidate"
    study: str
    """Name of its run, and of its lock."""
    name: str
    """Of the registered model."""
    n_seeds: int
    like: str = ""
    """The pinned URI of the model that it is taken from."""


def reference_configuration(split: Split) -> FixedConfiguration:
    """The original report's network and recipe, trained once."""
    from fmnist_transfer.model import REFERENCE_SPEC
    from fmnist_transfer.recipe import REFERENCE_RECIPE
    from tuning.retraining import Candidate

    name = f"cnn2-reference{split.suffix}"
    return FixedConfiguration(Candidate(REFERENCE_SPEC, REFERENCE_RECIPE), name, name, 1)


def registered_configuration(context: SearchContext, uri: str) -> FixedConfiguration:
    """Network and recipe of a registered model, for the source half of another split."""
    from fmnist_transfer.registry import load, resolve
    from tuning.retraining import Candidate

    reference = resolve(context.store, uri)
    model = load(context.store, reference)
    if model.split.source == context.split.source:
        raise UsageError(
            f"--like {uri}: it was trained on classes {model.split.source} already; give another half with --split"
        )
    pinned = reference.pinned.removeprefix("models:/")
    base = pinned.partition("/")[0].removesuffix(model.split.suffix) if "/" in pinned else "cnn2"
    spec = replace(model.spec, n_classes=len(context.split.source))
    name = base + context.split.suffix
    candidate = Candidate(spec, model.recipe, origin=f"like {pinned}")
    return FixedConfiguration(candidate, f"{name}-like", name, context.settings.retrain_seeds, reference.pinned)


def train_fixed(context: SearchContext, fixed: FixedConfiguration) -> dict[str, Any]:
    """Train one configuration without a search, and register it."""
    from fmnist_transfer.tracking import TUNING

    store, half = context.store, context.half
    params = {
        "split": context.split,
        "seed": context.settings.seed,
        "data_sha256": half.data_sha256,
        "device": context.device,
        "precision": context.settings.precision,
    } | ({"like": fixed.like} if fixed.like else {})
    runs = store.find(TUNING, role="study", study=fixed.study)
    wanted = {key: str(value) for key, value in params.items()}
    same = [run for run in runs if run.data.params == wanted]
    for run in runs:
        if run.info.status == "RUNNING" and run not in same[:1]:  # its process died: this one owns the name
            store.end(run.info.run_id, "KILLED")
    if same:
        run_id = str(same[0].info.run_id)
        store.reopen(same[0], "search", params)
    else:
        run_id = store.start(TUNING, fixed.study, params=params, tags={"role": "study", "study": fixed.study})
    with store.ending(run_id):
        store.log_data(run_id, half, "source")
        context.stopwatch.lap("start")
        result = register_best(
            context, run_id, [fixed.candidate], study=fixed.study, name=fixed.name, n_seeds=fixed.n_seeds
        )
    return result | {"n_trials": 0, "n_pruned": 0}


def register_best(
    context: SearchContext, run_id: str, candidates: "list[Candidate]", *, study: str, name: str, n_seeds: int
) -> dict[str, Any]:
    """Train the candidates again, register the winner, move `best`; or find what the same work registered before."""
    from tuning import promote
    from tuning.retraining import RetrainingPlan, print_retrained, retrain
    from tuning.retraining_log import RetrainingLog

    settings, store, data_sha256 = context.settings, context.store, context.half.data_sha256
    key = promote.promotion_key(
        candidates,
        seed=settings.seed,
        n_seeds=n_seeds,
        split=context.split,
        data_sha256=data_sha256,
        precision=settings.precision,
    )
    version = promote.registered_before(store, name, key)
    n_failed = 0
    if version is None:
        plan = RetrainingPlan(settings.seed, context.device, settings.precision, context.split, context.half)
        log = RetrainingLog(store, run_id, plan)
        retrained = retrain(log, candidates, plan, n_seeds=n_seeds, workers=context.workers, stop=context.stop)
        context.stopwatch.lap("training the best again")
        print_retrained(retrained)
        n_failed = len(candidates) * n_seeds - sum(len(one.val_accuracies) for one in retrained)
        facts = {"study": study, "seed": settings.seed, "data_sha256": data_sha256, "promotion_key": key}
        version = promote.register_winner(store, name, retrained[0], context.split, facts)
    promoted, message = promote.move_best(store, version, force=settings.promote)
    say(message)
    result = promote.result_of(study, version, promoted) | {"n_failed": n_failed}
    scores = {key: result[key] for key in ("best_of_n", "retrained_mean", "retrained_sd", "test_accuracy")}
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": result["model_uri"]})
    return result


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(SearchSettings, main, "tuning.search", args)


if __name__ == "__main__":
    sys.exit(command())
