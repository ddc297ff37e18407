"""Train the best again, register the winner, and move alias `best` to it if it is better.

Three scores are kept apart: best of N in the search, mean and standard deviation over re-trainings, and the registered
network's test accuracy.
"""

from typing import Any

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.identity import identity
from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel, load_weights
from fmnist_transfer.store.registry import ModelVersion, best_version, is_gone, register, set_best, versions_of
from fmnist_transfer.store.roles import TUNING, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, say
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.workers.run import Workers
from tuning.winner.plan import Candidate, Retrained, RetrainingPlan
from tuning.winner.retraining import print_retrained, retrain, retraining_log


def retrain_and_register(
    store: Store,
    plan: RetrainingPlan,
    candidates: list[Candidate],
    *,
    run_id: str,
    study: str,
    name: str,
    force: bool,
    workers: Workers,
    stopwatch: Stopwatch,
    debug: bool,
) -> dict[str, Any]:
    """Train the candidates again, register the winner as `name`, and move `best`.

    Earlier re-trainings and registrations are reused; failed re-trainings are retried. Returns what `--json` says of
    the winner, and `n_failed`, the number of failed re-trainings.

    Args:
        run_id: id of the search's parent run.
        force: move `best` even if the new score is lower.
    """
    retrained = retrain(retraining_log(store, run_id, plan), candidates, plan, workers=workers, debug=debug)
    stopwatch.lap("training the best again")
    print_retrained(retrained)
    key = winner_key(retrained, plan)
    version = registered_before(store, name, key)
    if version is None:
        facts = {"study": study, "seed": plan.seed, "data_sha256": plan.half.data_sha256, "winner_key": key}
        version = register_winner(store, name, retrained[0], plan.split, facts, run_id=run_id)
    promoted, message = move_best(store, version, force=force)
    say(message)
    result = result_of(study, version, promoted)
    scores = {key: result[key] for key in ("best_of_n", "retrained_mean", "retrained_sd", "test_accuracy")}
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": result["model_uri"]})
    n_trained = sum(len(configuration.val_accuracies) for configuration in retrained)
    return result | {"n_failed": len(candidates) * plan.n_seeds - n_trained}


def winner_key(retrained: list[Retrained], plan: RetrainingPlan) -> str:
    """Key by which a repeated command finds its registered version: equal for equal work with equal results."""
    configurations = [(each.candidate.spec.to_dict(), each.candidate.recipe.to_dict()) for each in retrained]
    accuracies = [each.val_accuracies for each in retrained]
    return identity(
        device=plan.device, n_seeds=plan.n_seeds, configurations=configurations, accuracies=accuracies, **plan.facts()
    ).key


def registered_before(store: Store, name: str, key: str) -> ModelVersion | None:
    """The version of `name` with this winner key whose model was not deleted; None if there is none."""
    same = (version for version in versions_of(store, name) if version.tags.get("winner_key") == key)
    return next((version for version in same if not is_gone(store, version)), None)


def register_winner(
    store: Store, name: str, winner: Retrained, split: Split, facts: dict[str, Any], *, run_id: str
) -> ModelVersion:
    """Register the winner's first re-trained network. It is not chosen by its own score, so its test accuracy is fair.

    `facts` (study, seed, data sha256, winner key) and the scores become tags of the version.

    Args:
        run_id: id of the search's parent run, to which the version links.
    """
    facts = facts | {
        "trial": winner.candidate.trial,
        "best_of_n": winner.candidate.search_score,
        "retrained_mean": winner.mean,
        "retrained_sd": winner.sd,
        "n_seeds": len(winner.val_accuracies),
        "test_accuracy": winner.test_accuracy,
    }
    spec = winner.candidate.spec
    state = load_weights(store, winner.run_id, spec)
    model = TrainedModel(spec, winner.candidate.recipe, split, state, facts)
    sd = "" if winner.sd is None else f" ± {winner.sd:.2%} (sd)"
    experiment_id = store.experiment(TUNING)
    made = []
    if winner.candidate.trial is not None:  # FINISHED excludes a run whose logging was cut off
        made = store.find(TUNING, status="FINISHED", role=Role.TRIAL, parent=run_id, trial=str(winner.candidate.trial))
    origin = [f"[{run.info.run_name}]({run_page(experiment_id, run.info.run_id)})" for run in made[:1]]
    description = (
        f"CNN2 trained on Fashion-MNIST classes {digits(split.source)}; configuration: "
        f"{''.join(origin) or winner.candidate.name}, run [{facts['study']}]({run_page(experiment_id, run_id)}). "
        f"Validation accuracy {winner.mean:.2%}{sd} over {counted(len(winner.val_accuracies), 'fresh seed')}; "
        f"[this network]({run_page(experiment_id, winner.run_id)}), the first of them, has test accuracy "
        f"{winner.test_accuracy:.2%}.\n\nInput: float32 [n, 1, 28, 28], pixels scaled to [0, 1], minus 0.2860, over "
        "0.3530. Output: logits of the classes in ascending order."
    )
    return register(store, winner.run_id, name, model, tags=facts | {"split": split}, description=description)


def move_best(store: Store, version: ModelVersion, *, force: bool) -> tuple[bool, str]:
    """Point alias `best` to `version` if it has the higher score on the same split and data, or if `force`.

    Returns whether `best` points to it now, and a message that says why.
    """
    with locked(store.uri, "model", f"model-{version.name}", wait_seconds=60):  # another search may be moving it
        return _move_best(store, version, force=force)


def _move_best(store: Store, version: ModelVersion, *, force: bool) -> tuple[bool, str]:
    new = f"{version.name} version {version.version}"
    current = best_version(store, version.name)
    if current is not None and str(current.version) == str(version.version):
        return True, f"best already points to {new}"
    if current is None:
        set_best(store, version)
        return True, f"best -> {new}"
    old = f"version {current.version}"
    if is_gone(store, current):
        set_best(store, version)
        return True, f"best -> {new}: the model of {old} was deleted"
    same = all(current.tags.get(key) == version.tags.get(key) for key in ("split", "data_sha256"))
    means = (float(version.tags.get("retrained_mean", "nan")), float(current.tags.get("retrained_mean", "nan")))
    if not same:
        better, why = False, f"{old} was measured on another split or data"
    else:
        better = means[0] > means[1]
        why = f"re-trained validation accuracy {means[0]:.2%} against {means[1]:.2%} of {old}"
    if better or force:
        set_best(store, version)
        return True, f"best -> {new}: {why}" + ("" if better else ", by --promote")
    return False, f"best stays at {old}, {new} is registered: {why}. Add --promote to move it anyway"


def result_of(study_name: str, version: ModelVersion, promoted: bool) -> dict[str, Any]:
    """The content of `--json` about a registered version."""

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
