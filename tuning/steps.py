"""The steps of a search: run trials, train the best again, register the winner.

Imports torch, mlflow and optuna, so `tuning.search` imports this module only after it has parsed its flags.
"""

import contextlib
import functools
import shlex
from collections import Counter
from dataclasses import replace
from typing import Any

import optuna

from fmnist_transfer.data.examples import load_half
from fmnist_transfer.data.files import default_data_dir
from fmnist_transfer.data.split import Split, digits, parse_split
from fmnist_transfer.errors import NoStoreError, UsageError, UserError
from fmnist_transfer.flags import ONE_TIME, precision_of_tasks
from fmnist_transfer.identity import identity
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC, CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.links import experiment_page, model_page
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.opening import open_for_work, open_parent, open_store
from fmnist_transfer.store.places import default_folder, sqlite_path, store_uri
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TUNING, Role, View, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.command import command_line
from fmnist_transfer.terminal.output import counted, print_pairs, say
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.training.evaluation import check_precision
from fmnist_transfer.training.recipe import REFERENCE_RECIPE
from fmnist_transfer.workers.run import Workers
from tuning.settings import SearchSettings
from tuning.space import SPACE_VERSION, affordable, on_edge, starts
from tuning.study import begin, counting, open_storage, open_study, requeue
from tuning.trainings import Candidate, Plan
from tuning.trials import Trials, candidate, study_run
from tuning.winner import SearchContext, register_best


def search(settings: SearchSettings, device: str, workers: Workers, stopwatch: Stopwatch) -> dict[str, Any]:
    """Search, or train one network without a search. Returns what `--json` writes, and `n_failed`.

    Raises BusyError if another process works on the study, UserError if no trial completed.
    """
    split = parse_split(settings.split)
    half = workers.share(load_half(settings.data_dir or default_data_dir(), split.source))
    plan = Plan(half, split, settings.seed, device, precision_of_tasks(settings, device))
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    store = open_for_work(settings.tracking_uri, TUNING, retry, mend_copy=settings.mend_copy)
    store.end_orphans(TUNING)
    context = SearchContext(settings, store, plan, workers, stopwatch)
    result = _tune(context) if settings.is_search else _train_fixed(context)
    stopwatch.lap("registering")
    uri = result["model_uri"]
    model = uri.rpartition("/")[0] + "/best" if result["promoted"] else uri
    place = f" --tracking-uri {shlex.quote(settings.tracking_uri)}" if settings.tracking_uri else ""
    commands = {
        "transfer it": f"python -m sweeps.transfer --model-uri {model}{place}",
        "in a browser": f"{store.show_command}  # trials, models",
    }
    if settings.is_search:
        more = command_line("tuning.search", settings, **ONE_TIME | {"trials": 2 * settings.trials})
        commands["search on"] = f"{more}  # adds trials to this study"
    print_pairs("Look next", commands)
    return result


def description(store: Store, subject: str, result: dict[str, Any] | None = None, picture: str = "") -> str:
    """Describe a search in Markdown: what is trained (`subject`), then the result, as the UI folds the rest."""
    outcome = "**Not finished yet.**"
    if result:
        uri = str(result["model_uri"])
        name, _, version = uri.removeprefix("models:/").partition("/")
        labels = {"best_of_n": "best of the search (optimistic)"}
        labels |= {"retrained_mean": "validation accuracy, trained again", "test_accuracy": "test accuracy"}
        scores = ", ".join(f"{label} {result[key]:.2%}" for key, label in labels.items() if result[key] is not None)
        outcome = (
            f"Registered: [{name} version {version}]({model_page(name, version)}): {scores}. Transfer it: "
            f"`python -m sweeps.transfer --model-uri {uri}`"
        )
    trials, retrained = (experiment_page(store.experiment(TUNING), view) for view in (View.TRIALS, View.RETRAINED))
    tables = f"Look at: [trials, the best first]({trials}) · [the best, trained again]({retrained})"
    return "\n\n".join(filter(None, [f"{subject} {outcome}", tables, picture]))


def _tune(context: SearchContext) -> dict[str, Any]:
    settings, store, plan, name = context.settings, context.store, context.plan, context.settings.study
    affordable(settings.cost_limit)  # raises UsageError if there is no such network
    _check_precision(plan, HAND_MADE_SPEC)
    limits = {"epochs": settings.epochs, "max_cost": settings.cost_limit, "space": SPACE_VERSION}
    facts = identity(device=plan.device, **limits, **plan.facts()).facts
    storage = open_storage(settings.storage, store.folder, store.retry)
    with locked(storage.url, f"study {name!r}", f"study-{name}"):
        study = open_study(storage, name, facts)
        is_shared = sqlite_path(storage.url) is None
        run_id = study_run(store, study, facts, is_shared=is_shared, take_over=settings.take_over)
        with store.ending(run_id):
            begin(study, facts)
            return _run_study(context, study, run_id)


def _run_study(context: SearchContext, study: optuna.Study, run_id: str) -> dict[str, Any]:
    """Run the study's missing trials, train the best again, and register the winner."""
    settings, store, plan, stopwatch = context.settings, context.store, context.plan, context.stopwatch
    classes, epochs = digits(plan.split.source), counted(settings.epochs, "epoch")
    limit = settings.cost_limit
    size = "" if limit is None else f" of cost up to {limit:g} (the default network's is 1)"
    subject = f"Search for a CNN{size} on Fashion-MNIST classes {classes}: {{}} of up to {epochs}."
    requeue(study, failed=True)
    log = Trials(study, store, plan, settings, workers=context.workers, run_id=run_id)
    n_trials = max(settings.trials, len(log.counting))
    store.describe(run_id, description(store, subject.format(counted(n_trials, "trial"))))
    store.log_data(run_id, plan.half, "source")
    done = f"; {len(log.counting)} done already" if log.counting else ""
    workers = context.workers
    outline = {
        "trials": f"{settings.trials} of up to {epochs}{done}",
        "then": f"the best {settings.top} trained again, two of them {settings.n_seeds} times; one is registered",
        "on": f"{counted(workers.n, 'worker')}, {plan.device}" if workers.engine == "local" else "Ray",
    }
    print_pairs(f"Search for a CNN2{size} on classes {classes}", outline)
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
    by_hand = [trial for trial in completed if trial.params == starts(limit)[0]][:1]
    again = {trial.number: candidate(trial) for trial in [*completed[:1], *by_hand, *completed[1:]]}
    candidates = list(again.values())[: settings.top]
    result = register_best(context, candidates, run_id, study=settings.study, name=f"cnn2{plan.split.suffix}")
    if by_hand and result["trial"] == by_hand[0].number:
        say("Nothing beat the first trial, the hand-made configuration. Try more --trials or a larger --max-cost")
    store.describe(run_id, description(store, subject.format(counted(len(trials), "trial")), result, picture))
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n["FAIL"] + result["n_failed"]}


def _train_fixed(context: SearchContext) -> dict[str, Any]:
    """Train the network of `--reference` or `--like` and register it. Returns the same as `_tune`."""
    settings, store, plan = context.settings, context.store, context.plan
    fixed, name, study = _fixed_candidate(store, settings.like, plan.split)
    _check_precision(plan, fixed.spec)
    like = {"like": fixed.like} if fixed.like else {}
    work = identity(device=plan.device, **settings_params(fixed.spec, fixed.recipe), **plan.facts(), **like)
    tags = {"role": Role.STUDY, "study": study, "study_key": work.key}
    classes = digits(plan.split.source)
    subject = f"One configuration ({fixed.name}), trained on Fashion-MNIST classes {classes} without a search."
    with locked(store.uri, "search", f"study-{work.key}"):
        find = functools.partial(store.find, TUNING, **tags)
        start = functools.partial(store.start, TUNING, study, params=work.facts, tags=tags)
        parent = open_parent(store, "search", find=find, start=start, params=work.facts, take_over=settings.take_over)
        run_id = str(parent.info.run_id)
        with store.ending(run_id):
            store.log_data(run_id, plan.half, "source")
            store.describe(run_id, description(store, subject))
            context.stopwatch.lap("start")
            result = register_best(context, [fixed], run_id, study=study, name=name)
            store.describe(run_id, description(store, subject, result))
    return result | {"n_trials": 0, "n_pruned": 0}


def _check_precision(plan: Plan, spec: CNN2Spec) -> None:
    network = fresh_network(spec, Streams(plan.seed))
    check_precision(network, plan.half.val.images, plan.precision, plan.device)


def _fixed_candidate(store: Store | None, like: str | None, split: Split) -> tuple[Candidate, str, str]:
    """Return a configuration to train without a search, and the names of its registered model and of its parent run.

    It is that of the registered model `like`, else the original report's, which needs no store.
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


def dry_run(settings: SearchSettings) -> dict[str, Any]:
    """Print what is done and what would run. Creates, changes and downloads nothing."""
    retry, n_done, n_to_run = RetryPolicy(settings.store_timeout), 0, 0
    if settings.is_search:
        study, new = settings.study, ", a new one"
        with contextlib.suppress(NoStoreError):  # raises StoreError for a deleted experiment
            open_store(settings.tracking_uri, retry, may_write=False).find(TUNING, study=study)
        folder = (sqlite_path(store_uri(settings.tracking_uri)) or default_folder() / "mlflow.db").parent
        with contextlib.suppress(NoStoreError, KeyError):  # KeyError: no study has this name
            storage = open_storage(settings.storage, folder, retry, may_write=False)
            n_done, new = len(counting(optuna.load_study(study_name=study, storage=storage))), ""
        n_to_run = max(0, settings.trials - n_done)
        say(f"Study {study!r}{new}: {n_done} trials done, {n_to_run} would run")
        work = f"Then the best {settings.top} would be trained again with fresh seeds, and one registered"
    else:
        store = open_store(settings.tracking_uri, retry, may_write=False) if settings.like else None
        fixed, name, study = _fixed_candidate(store, settings.like, parse_split(settings.split))
        work = f"{name} ({fixed.name}) would be trained for {fixed.recipe.epochs} epochs and registered"
    say(f"{work}, unless this is done already")
    return {"study": study, "n_trials": n_done, "n_to_run": n_to_run, "n_failed": 0}
