"""What a search does, stage by stage: trials, then the best trained again, and the winner registered.

Imported when torch, mlflow and optuna are to be loaded, which the command's flags need not.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

from fmnist_transfer.console import Stopwatch, print_pairs, say
from fmnist_transfer.data import Half
from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.lease import own_or_help
from fmnist_transfer.ownership import Owner, owning
from fmnist_transfer.parallel import Workers
from fmnist_transfer.split import Split, digits
from fmnist_transfer.stopping import StopSignal
from fmnist_transfer.tracking import Store
from fmnist_transfer.ui import INLINE_DPI
from tuning import description, promote
from tuning.outline import outline
from tuning.retraining import Candidate, RetrainingPlan, print_retrained, retrain
from tuning.retraining_log import RetrainingLog
from tuning.space import SPACE_VERSION, check_limit, on_edge
from tuning.storage import patient_storage
from tuning.study import TrialPlan, find_study, finished, interrupt_dead, open_study, spec_and_recipe
from tuning.study_log import PARENT, StudyLog
from tuning.trials import run_trials

if TYPE_CHECKING:
    from tuning.fixed import FixedConfiguration
    from tuning.search import SearchSettings


@dataclass(frozen=True)
class SearchContext:
    """What every stage of the command needs."""

    settings: "SearchSettings"
    store: Store
    half: Half
    split: Split
    device: str
    workers: Workers
    stop: StopSignal
    stopwatch: Stopwatch


def tune_or_help(context: SearchContext, uri: str, study_name: str) -> dict[str, Any]:
    """Own the study and finish the search; on a server's study, help whoever owns it.

    Raises BusyError if another process owns a study in a file.
    """
    settings, store = context.settings, context.store
    check_limit(settings.mflops_limit)
    identity = study_identity(context)
    storage = patient_storage(uri, store.patience)
    study = open_study(storage, study_name, identity)

    def own() -> dict[str, Any]:
        with owning(uri, "search", f"study-{study_name}"):
            log = StudyLog(store, study, identity | {"device": context.device}, context.half)
            with log.lease.owned("search", context.stop.is_set):
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


def study_identity(context: SearchContext) -> dict[str, Any]:
    """All that a study's trials depend on but their parameters; it keeps to that."""
    settings = context.settings
    identity = {
        "epochs": settings.epochs,
        "max_mflops": settings.mflops_limit,
        "split": str(context.split),
        "seed": settings.seed,
        "space": SPACE_VERSION,
        "data_sha256": context.half.data_sha256,
    }
    # Studies of before know no other precision.
    return identity | ({"precision": settings.precision} if settings.precision != "float32" else {})


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
    context.stop.raise_if_set(f"{len(finished(study))} of {settings.trials} trials done; {SAME_COMMAND}")


def _tune(context: SearchContext, study: optuna.Study, log: StudyLog, plan: TrialPlan) -> dict[str, Any]:
    """Run the study's missing trials, then train the best again and register the winner."""
    settings, store, study_name = context.settings, context.store, study.study_name
    n_failed_before = sum(trial.state.name == "FAIL" for trial in finished(study))
    with store.ending(log.run_id, log.lease.is_owner):
        n_wanted = max(settings.trials, len(finished(study)))
        store.describe(log.run_id, description.of_search(context, n_wanted))
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
        from tuning.figures import search_figures  # matplotlib: not before the first trial

        figures = search_figures(study)
        for path, figure in figures.items():
            store.log_figure(log.run_id, path, figure)
        if description.INLINE in figures:
            store.log_figure(log.run_id, description.INLINE_COPY, figures[description.INLINE], INLINE_DPI)
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
        pictured = log.run_id if description.INLINE in figures else ""
        store.describe(log.run_id, description.of_search(context, len(trials), result, pictured))
    n_failed = n["FAIL"] - n_failed_before + result["n_failed"]
    return result | {"n_trials": len(trials), "n_pruned": n["PRUNED"], "n_failed": n_failed}


def dry_run(context: SearchContext, uri: str, study_name: str, fixed: "FixedConfiguration | None") -> dict[str, Any]:
    """Say what is done and what would run; no trial is begun and no run is made."""
    settings = context.settings
    if fixed:
        name, epochs = fixed.candidate.name, fixed.candidate.recipe.epochs
        say(f"{fixed.name} ({name}) would be trained for {epochs} epochs and registered, unless it is there")
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


def register_best(
    context: SearchContext, run_id: str, candidates: list[Candidate], *, study: str, name: str, n_seeds: int
) -> dict[str, Any]:
    """Train the candidates again, register the winner, move `best`; or find what the same work registered before."""
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
        version = promote.register_winner(store, name, retrained[0], context.split, facts, run_id=run_id)
    promoted, message = promote.move_best(store, version, force=settings.promote)
    say(message)
    result = promote.result_of(study, version, promoted) | {"n_failed": n_failed}
    scores = {key: result[key] for key in ("best_of_n", "retrained_mean", "retrained_sd", "test_accuracy")}
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": result["model_uri"]})
    return result
