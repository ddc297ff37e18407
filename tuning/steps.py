"""The steps of a search: run trials, train the best again, register the winner.

Imports torch, mlflow and optuna, so `tuning.search` imports this module only after it has parsed its flags.
"""

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import optuna

from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import Split, digits, parse_split
from fmnist_transfer.errors import NoStoreError, UsageError, UserError
from fmnist_transfer.identity import identity
from fmnist_transfer.network.cnn2 import REFERENCE_SPEC
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.open_runs import open_parent
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import default_folder, sqlite_path, store_uri
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TUNING, Role, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, print_pairs, say
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.training.recipe import REFERENCE_RECIPE
from fmnist_transfer.workers.run import Workers
from tuning.mlflow_text import description
from tuning.settings import SearchSettings
from tuning.space import SPACE_VERSION, check_limit, on_edge
from tuning.study import begin, counting, open_storage, open_study, requeue
from tuning.trainings import Candidate, Plan, Retraining
from tuning.trials import Trials, candidate, study_run
from tuning.winner import move_best, print_retrained, register_winner, retrain, winner_key


@dataclass(frozen=True)
class SearchContext:
    """Settings, data and resources that every step uses."""

    settings: SearchSettings
    store: Store
    half: Half
    split: Split
    device: str
    workers: Workers
    stopwatch: Stopwatch

    @property
    def plan(self) -> Plan:
        return Plan(self.half, self.split, self.settings.seed, self.device, self.settings.precision)


def outline(context: SearchContext, study: optuna.Study) -> dict[str, str]:
    """Describe the planned work, label -> text."""
    settings, workers = context.settings, context.workers
    limit = "" if settings.mflops_limit is None else f", networks of at most {settings.mflops_limit:g} MFLOPs per image"
    n_done = len(counting(study))
    best = "the best" if settings.top == 1 else f"the best {settings.top}"
    return {
        "trials": f"{settings.trials} of up to {counted(settings.epochs, 'epoch')}{limit}"
        + (f"; {n_done} done already" * bool(n_done)),
        "then": f"{best} trained again, {counted(settings.retrain_seeds, 'seed')} each; the winner is registered",
        "on": f"{counted(workers.n, 'worker')}, {context.device}" if workers.engine == "local" else "Ray",
    }


def tune(context: SearchContext) -> dict[str, Any]:
    """Run the study's missing trials, train the best again, and register the winner. Returns the result for `--json`.

    Raises BusyError if another process works on the study, UserError if no trial completed.
    """
    settings, store, plan, name = context.settings, context.store, context.plan, context.settings.study
    check_limit(settings.mflops_limit)
    limits = {"epochs": settings.epochs, "max_mflops": settings.mflops_limit, "space": SPACE_VERSION}
    facts = identity(device=plan.device, **limits, **plan.facts()).facts
    storage = open_storage(settings.storage, store.folder, store.retry)
    with locked(storage.url, f"study {name!r}", f"study-{name}"):
        study = open_study(storage, name, facts)
        is_shared = sqlite_path(storage.url) is None
        run_id = study_run(store, study, facts, is_shared=is_shared, take_over=settings.take_over)
        with store.ending(run_id):
            begin(study, facts)
            return _tune(context, study, run_id)


def _tune(context: SearchContext, study: optuna.Study, run_id: str) -> dict[str, Any]:
    settings, store, plan, stopwatch = context.settings, context.store, context.plan, context.stopwatch
    classes, limit = digits(plan.split.source), settings.mflops_limit
    size = "of any size" if limit is None else f"of at most {limit:g} MFLOPs per image"
    epochs = counted(settings.epochs, "epoch")
    subject = f"Search for a CNN {size} on Fashion-MNIST classes {classes}: {{}} of up to {epochs}."
    requeue(study, failed=True)
    log = Trials(study, store, plan, settings, workers=context.workers, run_id=run_id)
    n_trials = max(settings.trials, len(log.counting))
    store.describe(run_id, description(store, subject.format(counted(n_trials, "trial"))))
    store.log_data(run_id, plan.half, "source")
    print_pairs(f"Search for CNN2 on classes {classes}", outline(context, study))
    stopwatch.lap("start")
    trials = log.run()
    n = Counter(trial.state.name for trial in trials)
    counts = f"{n['COMPLETE']} complete, {n['PRUNED']} pruned, {n['FAIL']} failed"
    say(f"{len(trials)} trials of study {settings.study!r}: {counts}")
    stopwatch.lap("trials")
    if not n["COMPLETE"]:
        raise UserError(
            f"no trial of study {settings.study!r} completed; its runs in MLflow say why. Continue it with more "
            "--trials or a longer --timeout"
        )
    from tuning.figures import log_figures  # imported late, so as not to delay the first trial

    picture = log_figures(store, run_id, study)
    stopwatch.lap("figures")
    completed = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: -(t.value or 0))
    for edge in on_edge(completed[0]):
        say(f"note: the best trial lies on the edge of its range: {edge}")
    best = [candidate(trial) for trial in completed[: settings.top]]
    result = _register(context, best, run_id, study=settings.study, name=f"cnn2{plan.split.suffix}")
    store.describe(run_id, description(store, subject.format(counted(len(trials), "trial")), result, picture))
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n["FAIL"] + result["n_failed"]}


def train_fixed(context: SearchContext) -> dict[str, Any]:
    """Train the network of `--reference` or `--like` without a search and register it. Returns the same as `tune`."""
    settings, store, plan = context.settings, context.store, context.plan
    fixed, name, study = fixed_candidate(store, settings.like, plan.split)
    like = {"like": fixed.like} if fixed.like else {}
    work = identity(device=plan.device, **settings_params(fixed.spec, fixed.recipe), **plan.facts(), **like)
    tags = {"role": Role.STUDY, "study": study, "study_key": work.key}
    classes = digits(plan.split.source)
    subject = f"One configuration ({fixed.name}), trained on Fashion-MNIST classes {classes} without a search."
    with locked(store.uri, "search", f"study-{work.key}"):
        parent = open_parent(
            store,
            "search",
            find=lambda: store.find(TUNING, **tags),
            start=lambda: store.start(TUNING, study, params=work.facts, tags=tags),
            params=work.facts,
            take_over=settings.take_over,
        )
        run_id = str(parent.info.run_id)
        with store.ending(run_id):
            store.log_data(run_id, plan.half, "source")
            store.describe(run_id, description(store, subject))
            context.stopwatch.lap("start")
            result = _register(context, [fixed], run_id, study=study, name=name)
            store.describe(run_id, description(store, subject, result))
    return result | {"n_trials": 0, "n_pruned": 0}


def fixed_candidate(store: Store | None, like: str | None, split: Split) -> tuple[Candidate, str, str]:
    """Return a configuration to train without a search, and the names of its registered model and of its parent run.

    It is that of the registered model `like`, else the original report's, which needs no store. Raises ModelError,
    UsageError.
    """
    if store is None or like is None:
        name = f"cnn2-reference{split.suffix}"
        return Candidate(REFERENCE_SPEC, REFERENCE_RECIPE), name, name
    pinned_model = resolve(store, like)
    model = load(store, pinned_model)
    if model.split.source == split.source:
        raise UsageError(
            f"--like {like}: it was already trained on classes {model.split.source}; give another half with --split"
        )
    name = pinned_model.name.removesuffix(model.split.suffix) + split.suffix
    spec = replace(model.spec, n_classes=len(split.source))
    return Candidate(spec, model.recipe, like=pinned_model.pinned), name, f"{name}-like"


def _register(context: SearchContext, best: list[Candidate], run_id: str, *, study: str, name: str) -> dict[str, Any]:
    """Train the best again, register the winner as `name`, and move the alias. Returns their part of `--json`.

    Earlier re-trainings and registrations are reused; failed re-trainings are retried.
    """
    settings, store, plan = context.settings, context.store, context.plan
    tasks = [Retraining(each, replicate) for each in best for replicate in range(1, settings.n_seeds + 1)]
    retrained = retrain(store, run_id, plan, tasks, context.workers, debug=settings.debug)
    context.stopwatch.lap("training the best again")
    print_retrained(retrained)
    facts = {"study": study, "seed": plan.seed, "data_sha256": plan.half.data_sha256}
    facts["winner_key"] = winner_key(retrained, plan, settings.n_seeds)
    version = register_winner(store, name, retrained[0], plan.split, facts, run_id=run_id)
    promoted, message = move_best(store, version, force=settings.promote)
    say(message)
    scores, uri = retrained[0].scores(), f"models:/{name}/{version.version}"
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": uri})
    n_failed = len(tasks) - sum(len(each.trainings) for each in retrained)
    result = {"study": study, "model_uri": uri, "version": int(version.version), "promoted": promoted}
    return result | scores | {"n_failed": n_failed}


def dry_run(settings: SearchSettings) -> dict[str, Any]:
    """Print what is done and what would run. Creates, changes and downloads nothing."""
    retry, n_done, n_to_run = RetryPolicy(settings.store_timeout), 0, 0
    if settings.is_search:
        study = settings.study
        with contextlib.suppress(NoStoreError):  # raises StoreError for a deleted experiment
            open_store(settings.tracking_uri, retry, may_write=False).find(TUNING, study=study)
        folder = (sqlite_path(store_uri(settings.tracking_uri)) or default_folder() / "mlflow.db").parent
        new = ", a new one"
        with contextlib.suppress(NoStoreError, KeyError):  # KeyError: no study has this name
            storage = open_storage(settings.storage, folder, retry, may_write=False)
            n_done, new = len(counting(optuna.load_study(study_name=study, storage=storage))), ""
        n_to_run = max(0, settings.trials - n_done)
        say(f"Study {study!r}{new}: {n_done} trials done, {n_to_run} would run")
        work = f"Then the best {settings.top} would be trained again, {settings.n_seeds} seeds each, and one registered"
    else:
        store = open_store(settings.tracking_uri, retry, may_write=False) if settings.like else None
        fixed, name, study = fixed_candidate(store, settings.like, parse_split(settings.split))
        work = f"{name} ({fixed.name}) would be trained for {fixed.recipe.epochs} epochs and registered"
    say(f"{work}, unless this is done already")
    return {"study": study, "n_trials": n_done, "n_to_run": n_to_run, "n_failed": 0}
