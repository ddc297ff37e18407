"""The steps of a search: run trials, train the best again, register the winner.

Imports torch, mlflow and optuna, so `tuning.search` imports this module only after it has parsed its flags.
"""

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import Split, digits, parse_split
from fmnist_transfer.errors import SAME_COMMAND, NoStoreError, UserError
from fmnist_transfer.identity import Identity, identity
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import default_folder, sqlite_path, store_uri
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TUNING
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import about, counted, print_pairs, say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.training.forecast import seconds_per_pass, training_passes
from fmnist_transfer.workers.run import Workers
from tuning.mlflow_text import INLINE, INLINE_COPY, describe_search
from tuning.settings import SearchSettings
from tuning.space import SPACE_VERSION, check_limit, first_trial, on_edge, suggest
from tuning.study.study import begin, counting, find_study, open_storage, open_study, requeue, spec_and_recipe
from tuning.study.study_log import StudyLog
from tuning.study.task import TrialPlan, train_trial
from tuning.study.trials import Driver
from tuning.winner.plan import Candidate, RetrainingPlan
from tuning.winner.register import retrain_and_register
from tuning.without_search import fixed_configuration

# Mean duration of a trial relative to the hand-made first trial: 54 of 79 s in a default search (10 of 24 pruned).
TRIAL_SHARE = 0.7


@dataclass(frozen=True)
class SearchContext:
    """Settings, data and resources that every stage of the command uses."""

    settings: SearchSettings
    store: Store
    half: Half
    split: Split
    device: str
    workers: Workers
    stopwatch: Stopwatch

    def retraining_plan(self) -> RetrainingPlan:
        settings = self.settings
        n_seeds = 1 if settings.reference else settings.retrain_seeds
        return RetrainingPlan(self.half, self.split, settings.seed, n_seeds, self.device, settings.precision)


def outline(context: SearchContext, study: optuna.Study) -> dict[str, str]:
    """Describe the planned work and its approximate duration, label -> text."""
    settings, workers = context.settings, context.workers
    limit = "" if settings.mflops_limit is None else f", networks of at most {settings.mflops_limit:g} MFLOPs per image"
    n_done = len(counting(study))
    n_open = max(0, settings.trials - n_done)
    best = "the best" if settings.top == 1 else f"the best {settings.top}"
    lines = {
        "trials": f"{settings.trials} of up to {counted(settings.epochs, 'epoch')}{limit}"
        + (f"; {n_done} done already" * bool(n_done)),
        "then": f"{best} trained again, {counted(settings.retrain_seeds, 'seed')} each; the winner is registered",
        "on": f"{counted(workers.n, 'worker')}, {context.device}" if workers.engine == "local" else "Ray",
    }
    if workers.engine != "local" or not n_open:
        return lines
    spec, recipe = suggest(
        optuna.trial.FixedTrial(first_trial(settings.mflops_limit)),
        epochs=settings.epochs,
        max_mflops=settings.mflops_limit,
    )
    if (per_pass := seconds_per_pass(spec, recipe, context.device, settings.precision)) is not None:
        seconds_per_trial = per_pass * training_passes(recipe, len(context.half.train), len(context.half.val))
        seconds = seconds_per_trial * (TRIAL_SHARE * n_open + settings.top * settings.retrain_seeds) / workers.n
        lines["takes"] = about(seconds)
    return lines


def tune(context: SearchContext) -> dict[str, Any]:
    """Run the study's missing trials, train the best again, and register the winner. Returns the result for `--json`.

    Raises BusyError if another process works on the study, UserError if no trial completed.
    """
    settings, store = context.settings, context.store
    check_limit(settings.mflops_limit)
    name, work = settings.study, study_identity(context)
    storage = open_storage(settings.storage, store.folder, store.retry)
    with locked(storage.url, f"study {name!r}", f"study-{name}"):
        study = open_study(storage, name, work.facts)
        is_shared = sqlite_path(storage.url) is None
        log = StudyLog(store, study, work.facts, context.half, is_shared=is_shared, take_over=settings.take_over)
        with store.ending(log.run_id):
            begin(study, work.facts)
            return _tune(context, study, log)


def study_identity(context: SearchContext) -> Identity:
    """Settings besides a trial's parameters that determine its result; fixed for the study."""
    settings = context.settings
    return identity(
        device=context.device,
        epochs=settings.epochs,
        max_mflops=settings.mflops_limit,
        split=str(context.split),
        seed=settings.seed,
        space=SPACE_VERSION,
        data_sha256=context.half.data_sha256,
        precision=settings.precision,
    )


def _tune(context: SearchContext, study: optuna.Study, log: StudyLog) -> dict[str, Any]:
    settings, store, study_name = context.settings, context.store, study.study_name

    def described(n_trials: int, **outcome: Any) -> str:
        limit = settings.mflops_limit
        return describe_search(
            store, context.split, n_trials=n_trials, epochs=settings.epochs, mflops_limit=limit, **outcome
        )

    requeue(study, failed=True)
    n_wanted = max(settings.trials, len(counting(study)))
    store.describe(log.run_id, described(n_wanted))
    store.log_data(log.run_id, context.half, "source")
    print_pairs(f"Search for CNN2 on classes {digits(context.split.source)}", outline(context, study))
    log.log_finished(counting(study))
    context.stopwatch.lap("start")
    trials = _run_trials(context, study, log)
    context.stopwatch.lap("trials")
    completed = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: -(t.value or 0))
    if not completed:
        raise UserError(
            f"study {study_name!r}: none of its {len(trials)} trials completed; its runs in MLflow say why. "
            "Continue it with more --trials or a longer --timeout"
        )
    for edge in on_edge(completed[0]):
        say(f"note: the best trial lies on the edge of its range: {edge}")
    pictured = _log_figures(context, study, log)
    candidates = [Candidate(*spec_and_recipe(t), t.number, t.value) for t in completed[: settings.top]]
    result = retrain_and_register(
        store,
        context.retraining_plan(),
        candidates,
        run_id=log.run_id,
        study=study_name,
        name=f"cnn2{context.split.suffix}",
        force=settings.promote,
        workers=context.workers,
        stopwatch=context.stopwatch,
        debug=settings.debug,
    )
    store.describe(log.run_id, described(len(trials), result=result, pictured=pictured))
    n = Counter(trial.state.name for trial in trials)
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n["FAIL"] + result["n_failed"]}


def _run_trials(context: SearchContext, study: optuna.Study, log: StudyLog) -> list[FrozenTrial]:
    """Run trials until enough count (see `counting`), and return these. Raises Interrupted after a signal."""
    settings, workers = context.settings, context.workers
    plan = TrialPlan(context.half, settings.seed, settings.epochs, context.device, settings.precision)
    seconds = float("inf") if settings.timeout is None else settings.timeout
    with Progress("trials", max(0, settings.trials - len(counting(study)))) as progress:
        driver = Driver(
            study,
            log,
            plan,
            workers=workers,
            retry=context.store.retry,
            progress=progress,
            n_trials=settings.trials,
            max_mflops=settings.mflops_limit,
            deadline=time.monotonic() + seconds,
        )
        run_logged(workers, train_trial, plan, driver.tasks(), log=driver, progress=progress, debug=settings.debug)
    trials = counting(study)
    workers.stop.raise_if_set(f"{len(trials)} of {settings.trials} trials done; {SAME_COMMAND}")
    n = Counter(trial.state.name for trial in trials)
    say(
        f"{len(trials)} trials of study {study.study_name!r}: {n['COMPLETE']} complete, {n['PRUNED']} pruned, "
        f"{n['FAIL']} failed"
    )
    return trials


def _log_figures(context: SearchContext, study: optuna.Study, log: StudyLog) -> str:
    """Log the search's figures. Returns the id of their run; empty if there were too few trials."""
    from tuning.figures import search_figures  # imported late, so as not to delay the first trial

    is_pictured = context.store.log_figures(log.run_id, lambda: search_figures(study), (INLINE, INLINE_COPY))
    context.stopwatch.lap("figures")
    return log.run_id if is_pictured else ""


def dry_run(settings: SearchSettings) -> dict[str, Any]:
    """Print what is done and what would run. Creates, changes and downloads nothing."""
    result = {"n_trials": 0, "n_to_run": 0, "n_failed": 0}
    retry = RetryPolicy(settings.store_timeout)
    if not settings.is_search:
        store = open_store(settings.tracking_uri, retry, may_write=False) if settings.like else None
        fixed = fixed_configuration(store, settings.like, parse_split(settings.split))
        name, epochs = fixed.candidate.name, fixed.candidate.recipe.epochs
        say(f"{fixed.name} ({name}) would be trained for {epochs} epochs and registered, unless this is done already")
        return {"study": fixed.study} | result
    with contextlib.suppress(NoStoreError):  # raises StoreError for a deleted experiment
        open_store(settings.tracking_uri, retry, may_write=False).find(TUNING, study=settings.study)
    file = sqlite_path(store_uri(settings.tracking_uri))
    folder = file.parent if file else default_folder()
    study = None
    with contextlib.suppress(NoStoreError):
        study = find_study(open_storage(settings.storage, folder, retry, may_write=False), settings.study)
    n_done = len(counting(study)) if study else 0
    n_to_run = max(0, settings.trials - n_done)
    say(f"Study {settings.study!r}{'' if study else ', a new one'}: {n_done} trials done, {n_to_run} would run")
    say(
        f"Then the best {settings.top} would be trained again, {settings.retrain_seeds} seeds each, and one "
        "registered, unless this is done already"
    )
    return {"study": settings.study} | result | {"n_trials": n_done, "n_to_run": n_to_run}
