"""The steps of a search: run trials, train the best again, register the winner. Imports torch, mlflow and optuna."""

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
from fmnist_transfer.errors import SAME_COMMAND, NoStoreError, UsageError, UserError
from fmnist_transfer.flags import Machine
from fmnist_transfer.identity import identity
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.opening import open_for_work, open_parent, open_store
from fmnist_transfer.store.places import default_folder, sqlite_path, store_uri
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TUNING, Role, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, print_pairs, say
from fmnist_transfer.terminal.progress import Progress, Stopwatch
from fmnist_transfer.training.evaluation import check_precision
from fmnist_transfer.training.recipe import REFERENCE_RECIPE
from tuning.settings import SearchSettings
from tuning.space import SPACE_VERSION, affordable, on_edge, starts
from tuning.study import SETTINGS, counting, open_storage, open_study, requeue
from tuning.trainings import Candidate, Plan, train_trial
from tuning.trials import SearchContext, Trials, candidate, expected_best, study_run
from tuning.winner import register_best


def search(settings: SearchSettings, machine: Machine, stopwatch: Stopwatch) -> dict[str, Any]:
    """Search, or train one network without a search. Returns what `--json` writes, and `n_failed`."""
    device, precision, workers = machine
    split = parse_split(settings.split)
    half = workers.share(load_half(settings.data_dir or default_data_dir(), split.source))
    plan = Plan(half, split, settings.seed, device, precision)
    retry = RetryPolicy(settings.store_timeout, workers.stop.is_set)
    store = open_for_work(settings.tracking_uri, TUNING, retry, mend_copy=settings.mend_copy)
    store.end_orphans(TUNING)
    context = SearchContext(settings, store, plan, workers, stopwatch)
    fixed = None if settings.is_search else _fixed_candidate(store, settings.like, split)
    network = fresh_network(fixed[0].spec if fixed else HAND_MADE_SPEC, Streams(plan.seed))
    check_precision(network, half.val.images, precision, device)
    result = _train_one(context, *fixed) if fixed else _tune(context)
    stopwatch.lap("registering")
    place = f" --tracking-uri {shlex.quote(settings.tracking_uri)}" if settings.tracking_uri else ""
    transfer = f"python -m sweeps.transfer --model-uri {result['model_uri']}{place}"
    print_pairs("Look next", {"transfer it": transfer, "in a browser": f"{store.show_command}  # trials, models"})
    return result


def _tune(context: SearchContext) -> dict[str, Any]:
    """Open the study and its parent run, and run the study."""
    settings, store, plan, name = context.settings, context.store, context.plan, context.settings.study
    affordable(settings.cost_limit)  # raises UsageError if there is no such network
    limits = {"epochs": settings.epochs, "max_cost": settings.cost_limit, "space": SPACE_VERSION}
    facts = identity(device=plan.device, **limits, **plan.facts()).facts
    storage = open_storage(settings.storage, store.folder, store.retry)
    with locked(storage.url, f"study {name!r}", f"study-{name}"):
        study = open_study(storage, name, facts)
        run_id = study_run(context, study, facts, is_shared=sqlite_path(storage.url) is None)
        with store.ending(run_id):
            study.set_user_attr(SETTINGS, facts)
            requeue(study, failed=True)
            return _run_study(context, Trials(context, study, run_id, facts), run_id)


def _run_study(context: SearchContext, log: Trials, run_id: str) -> dict[str, Any]:
    """Run the study's missing trials, train the best again, and register the winner."""
    settings, plan, workers, n = context.settings, context.plan, context.workers, context.settings.trials
    on = f"{counted(workers.n, 'worker')} on {plan.device}"
    say(f"Study {settings.study!r}, classes {digits(plan.split.source)}: {len(log.counting)} of {n} trials done; {on}")
    context.stopwatch.lap("start")
    with Progress("trials", max(0, n - len(log.counting))) as progress:
        run_logged(workers, train_trial, plan, log.tasks(), log=log, progress=progress, debug=settings.debug)
    trials = log.counting
    workers.stop.raise_if_set(f"{len(trials)} of {n} trials done; {SAME_COMMAND}")
    context.stopwatch.lap("trials")
    states = Counter(trial.state.name for trial in trials)
    say(f"{states['COMPLETE']} trials complete, {states['PRUNED']} pruned, {states['FAIL']} failed")
    completed = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: -(t.value or 0))
    if not completed:
        remedy = "Continue it with more --trials or a longer --timeout"
        raise UserError(f"no trial of study {settings.study!r} completed; its runs in MLflow say why. {remedy}")
    for edge in on_edge(completed[0]):
        say(f"note: the best trial lies on the edge of its range: {edge}")
    curve = enumerate(expected_best([trial.value or 0.0 for trial in completed]), 1)
    context.store.log(run_id, metrics=[(f"expected_best/of_{len(completed)}", value, step) for step, value in curve])
    by_hand = [trial for trial in completed if trial.params == starts(settings.cost_limit)[0]][:1]
    again = {trial.number: candidate(trial) for trial in [*completed[:1], *by_hand, *completed[1:]]}
    candidates = list(again.values())[: settings.top]
    result = register_best(context, candidates, run_id, study=settings.study, name=f"cnn2{plan.split.suffix}")
    if by_hand and result["trial"] == by_hand[0].number:
        say("Nothing beat the first trial, the hand-made configuration. Try more --trials or a larger --max-cost")
    n_failed = states["FAIL"] + result["n_failed"]
    return result | {"n_trials": len(trials), "n_pruned": states["PRUNED"], "n_failed": n_failed}


def _train_one(context: SearchContext, fixed: Candidate, name: str, study: str, like: dict[str, str]) -> dict[str, Any]:
    """Train the network of `--reference` or `--like` and register it. Returns the same as `_tune`."""
    store, plan, take_over = context.store, context.plan, context.settings.take_over
    work = identity(device=plan.device, **settings_params(fixed.spec, fixed.recipe), **plan.facts(), **like)
    tags = {"role": Role.STUDY, "study": study, "study_key": work.key}
    with locked(store.uri, "search", f"study-{work.key}"):
        find = functools.partial(store.find, TUNING, **tags)
        start = functools.partial(store.start, TUNING, study, params=work.facts, tags=tags)
        parent = open_parent(store, "search", find=find, start=start, params=work.facts, take_over=take_over)
        run_id = str(parent.info.run_id)
        with store.ending(run_id):
            context.stopwatch.lap("start")
            result = register_best(context, [fixed], run_id, study=study, name=name)
    return result | {"n_trials": 0, "n_pruned": 0}


def _fixed_candidate(store: Store | None, like: str | None, split: Split) -> tuple[Candidate, str, str, dict[str, str]]:
    """Return the configuration of `--like` or the original report's, its model's and run's names, and `like` pinned."""
    if store is None or like is None:
        name = f"cnn2-reference{split.suffix}"
        return Candidate("reference", REFERENCE_SPEC, REFERENCE_RECIPE), name, name, {}
    pinned = resolve(store, like)
    model = load(store, pinned)
    if model.split.source == split.source:
        raise UsageError(f"--like {like} was trained on classes {digits(split.source)}; give another half by --split")
    name = pinned.name.removesuffix(model.split.suffix) + split.suffix
    spec = replace(model.spec, n_classes=len(split.source))
    fixed = Candidate(f"like {pinned.pinned.removeprefix('models:/')}", spec, model.recipe)
    return fixed, name, f"{name}-like", {"like": pinned.pinned}


def dry_run(settings: SearchSettings) -> dict[str, Any]:
    """Print what is done and what would run. Creates, changes and downloads nothing."""
    retry, study, n_done, n_to_run = RetryPolicy(settings.store_timeout), settings.study, 0, 0
    if settings.is_search:
        affordable(settings.cost_limit)  # raises UsageError if there is no such network
        with contextlib.suppress(NoStoreError):  # raises StoreError for a deleted experiment
            open_store(settings.tracking_uri, retry, may_write=False).find(TUNING, study=study)
        folder = (sqlite_path(store_uri(settings.tracking_uri)) or default_folder() / "mlflow.db").parent
        with contextlib.suppress(NoStoreError, KeyError):  # KeyError: no study has this name
            storage = open_storage(settings.storage, folder, retry, may_write=False)
            n_done = len(counting(optuna.load_study(study_name=study, storage=storage)))
        n_to_run = max(0, settings.trials - n_done)
        say(f"Study {study!r}: {n_done} trials done, {n_to_run} would run")
        work = f"Then the best {settings.top} would be trained again with fresh seeds, and one registered"
    else:
        store = open_store(settings.tracking_uri, retry, may_write=False) if settings.like else None
        fixed, name, study, _ = _fixed_candidate(store, settings.like, parse_split(settings.split))
        work = f"{name} ({fixed.name}) would be trained for {fixed.recipe.epochs} epochs and registered"
    say(f"{work}, unless this is done already")
    return {"study": study, "n_trials": n_done, "n_to_run": n_to_run, "n_failed": 0}
