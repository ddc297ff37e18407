"""The steps of a search: trials, then the best trained again, and the winner registered.

Imported when torch, mlflow and optuna are to be loaded, which the command's flags need not.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna

from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.identity import Identity, identity
from fmnist_transfer.store.lease import own_or_help
from fmnist_transfer.store.links import INLINE_DPI
from fmnist_transfer.store.lock import Owner, locked
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import about, counted, print_pairs, say
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.training.forecast import seconds_per_pass, training_passes
from fmnist_transfer.workers.run import Workers
from tuning.mlflow_text import INLINE, INLINE_COPY, describe_search
from tuning.settings import SearchSettings
from tuning.space import SPACE_VERSION, check_limit, first_trial, on_edge, suggest
from tuning.study.storage import patient_storage
from tuning.study.study import TrialPlan, find_study, finished, interrupt_dead, open_study, spec_and_recipe
from tuning.study.study_log import PARENT, StudyLog
from tuning.study.trials import run_trials
from tuning.winner.plan import Candidate, RetrainingPlan
from tuning.winner.register import retrain_and_register
from tuning.without_search import FixedConfiguration

# Mean seconds of a trial as a share of the first, hand-made one's: 54 of 79 s in a default search (10 of 24 pruned).
TRIAL_SHARE = 0.7


@dataclass(frozen=True)
class SearchContext:
    """What every stage of the command needs."""

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
    """What is about to run, and for about how long."""
    settings, workers = context.settings, context.workers
    limit = "" if settings.mflops_limit is None else f", networks of at most {settings.mflops_limit:g} MFLOPs an image"
    n_done = len(finished(study))
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


def tune_or_help(context: SearchContext, uri: str, study_name: str) -> dict[str, Any]:
    """Own the study and finish the search; on a server's study, help whoever owns it.

    Raises BusyError if another process owns a study in a file.
    """
    settings, store = context.settings, context.store
    check_limit(settings.mflops_limit)
    work = study_identity(context)
    storage = patient_storage(uri, store.retry)
    study = open_study(storage, study_name, work.facts)

    def own() -> dict[str, Any]:
        with locked(uri, "search", f"study-{study_name}"):
            log = StudyLog(store, study, work.facts, context.half)
            with log.lease.owned("search", context.workers.stop.is_set):
                log.open()
                interrupt_dead(study)
                return _tune(context, study, log, trial_plan(context, uri, study_name, is_owners=True))

    def help_owner() -> None:
        print_pairs(f"Helping with study {study_name!r}", outline(context, study))
        _run_trials(context, study, None, trial_plan(context, uri, study_name, is_owners=False))

    def leave() -> dict[str, Any]:
        trials = finished(study)
        n_pruned = sum(trial.state.name == "PRUNED" for trial in trials)
        return {"study": study_name, "n_trials": len(trials), "n_pruned": n_pruned, "n_failed": 0}

    def is_finished() -> bool:
        return store.client.get_run(study.user_attrs[PARENT]).info.status == "FINISHED"

    return own_or_help(own, help_owner if storage.is_shared else None, leave, is_finished)


def study_identity(context: SearchContext) -> Identity:
    """Everything that a study's trials depend on besides their parameters; fixed for the study."""
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


def trial_plan(context: SearchContext, uri: str, study_name: str, *, is_owners: bool) -> TrialPlan:
    settings = context.settings
    return TrialPlan(
        uri,
        study_name,
        settings.seed,
        settings.epochs,
        settings.mflops_limit,
        context.device,
        settings.precision,
        context.half,
        settings.store_timeout,
        Owner.this_process(),
        is_owners,
        settings.trials,
    )


def _run_trials(context: SearchContext, study: optuna.Study, log: StudyLog | None, plan: TrialPlan) -> None:
    """Those that are missing. Raises Interrupted after a signal."""
    settings = context.settings
    run_trials(study, log, plan, timeout=settings.timeout, workers=context.workers, debug=settings.debug)
    context.workers.stop.raise_if_set(f"{len(finished(study))} of {settings.trials} trials done; {SAME_COMMAND}")


def _tune(context: SearchContext, study: optuna.Study, log: StudyLog, plan: TrialPlan) -> dict[str, Any]:
    """Run the study's missing trials, then train the best again and register the winner."""
    settings, store, study_name = context.settings, context.store, study.study_name
    n_failed_before = sum(trial.state.name == "FAIL" for trial in finished(study))

    def described(n_trials: int, **outcome: Any) -> str:
        limit = settings.mflops_limit
        return describe_search(
            store, context.split, n_trials=n_trials, epochs=settings.epochs, mflops_limit=limit, **outcome
        )

    with store.ending(log.run_id, log.lease.is_owner):
        n_wanted = max(settings.trials, len(finished(study)))
        store.describe(log.run_id, described(n_wanted))
        store.log_data(log.run_id, context.half, "source")
        print_pairs(f"Search for CNN2 on classes {digits(context.split.source)}", outline(context, study))
        if settings.reap:
            say(f"Reaped: {log.delete_ghosts()} runs of trials that were not logged whole deleted")
        log.log_finished()
        context.stopwatch.lap("start")
        _run_trials(context, study, log, plan)
        context.stopwatch.lap("trials")
        trials = finished(study)
        log.check_owner()
        log.log_hosts()
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
        from tuning.figures import search_figures

        figures = search_figures(study)
        for path, figure in figures.items():
            store.log_figure(log.run_id, path, figure)
        if INLINE in figures:
            store.log_figure(log.run_id, INLINE_COPY, figures[INLINE], INLINE_DPI)
        context.stopwatch.lap("figures")
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
        )
        pictured = log.run_id if INLINE in figures else ""
        store.describe(log.run_id, described(len(trials), result=result, pictured=pictured))
    n_failed = n["FAIL"] - n_failed_before + result["n_failed"]
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n_failed}


def dry_run(context: SearchContext, uri: str, study_name: str, fixed: FixedConfiguration | None) -> dict[str, Any]:
    """Say what is done and what would run; no trial is begun and no run is made."""
    settings = context.settings
    if fixed:
        name, epochs = fixed.candidate.name, fixed.candidate.recipe.epochs
        say(f"{fixed.name} ({name}) would be trained for {epochs} epochs and registered, unless it is there")
        return {"study": study_name, "n_trials": 0, "n_to_run": 0, "n_failed": 0}
    study = find_study(patient_storage(uri, context.store.retry), study_name)
    n_done = len(finished(study)) if study else 0
    n_to_run = max(0, settings.trials - n_done)
    say(f"Study {study_name!r}{'' if study else ', a new one'}: {n_done} trials done, {n_to_run} would run")
    say(
        f"Then the best {settings.top} would be trained again, {settings.retrain_seeds} seeds each, and one "
        "registered, unless they are there"
    )
    return {"study": study_name, "n_trials": n_done, "n_to_run": n_to_run, "n_failed": 0}
