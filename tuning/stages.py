"""What a search does, stage by stage: trials, then the best trained again, and the winner registered.

Imported when torch, mlflow and optuna are to be loaded, which the command's flags need not.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmnist_transfer.console import Stopwatch, say
from fmnist_transfer.data import Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.parallel import Workers
from fmnist_transfer.split import Split
from fmnist_transfer.stopping import StopSignal
from fmnist_transfer.tracking import Store
from tuning import promote
from tuning.retraining import Candidate, RetrainingPlan, print_retrained, retrain
from tuning.retraining_log import RetrainingLog
from tuning.space import SPACE_VERSION, check_limit, on_edge
from tuning.storage import patient_storage
from tuning.study import TrialPlan, find_study, finished, open_study, spec_and_recipe
from tuning.study_log import StudyLog
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


def tune(context: SearchContext, uri: str, study_name: str) -> dict[str, Any]:
    """Run the study's missing trials, then train the best again and register the winner."""
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
        from tuning.figures import search_figures  # matplotlib: not before the first trial

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
        version = promote.register_winner(store, name, retrained[0], context.split, facts)
    promoted, message = promote.move_best(store, version, force=settings.promote)
    say(message)
    result = promote.result_of(study, version, promoted) | {"n_failed": n_failed}
    scores = {key: result[key] for key in ("best_of_n", "retrained_mean", "retrained_sd", "test_accuracy")}
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": result["model_uri"]})
    return result
