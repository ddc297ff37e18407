"""Train the best again with fresh seeds, register the winner, and move alias `best` to it if it is better.

Three scores are kept apart: the best of N in the search, which is optimistic, mean and standard deviation over
re-trainings, and the registered network's test accuracy.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import UserError
from fmnist_transfer.identity import identity
from fmnist_transfer.logged_tasks import Trained, TrainedNetworks, Training, run_logged
from fmnist_transfer.network.cost import training_cost
from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel, load_weights
from fmnist_transfer.store.registry import ModelVersion, best_version, is_gone, register, set_best, versions_of
from fmnist_transfer.store.roles import TUNING, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, print_table, say, say_heading
from fmnist_transfer.terminal.progress import Progress, Stopwatch
from fmnist_transfer.workers.run import Workers
from tuning.settings import SearchSettings
from tuning.trainings import Candidate, Plan, Retraining, retrain_one

N_FINALISTS = 2  # configurations trained again with all seeds


@dataclass(frozen=True)
class SearchContext:
    """Settings, data and resources that every step of a search uses."""

    settings: SearchSettings
    store: Store
    plan: Plan
    workers: Workers
    stopwatch: Stopwatch


class Retrained(NamedTuple):
    candidate: Candidate
    trainings: tuple[Trained, ...]  # the finished ones, at least one

    @property
    def val_accuracies(self) -> list[float]:
        return [training.val_accuracy for training in self.trainings]

    @property
    def overall_mean(self) -> float:
        """Mean accuracy with the search's score: one seed moves it by 0.2 points, as much as good ones differ."""
        return statistics.mean([self.candidate.search_score or self.val_accuracies[0], *self.val_accuracies])

    def scores(self) -> dict[str, float | None]:
        """Scores by their names in `--json`, tags and metrics; the test accuracy is that of the first re-training."""
        accuracies = self.val_accuracies
        return {
            "best_of_n": self.candidate.search_score,
            "retrained_mean": statistics.mean(accuracies),
            "retrained_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "test_accuracy": self.trainings[0].test_accuracy,
        }


def register_best(context: SearchContext, best: list[Candidate], run_id: str, study: str, name: str) -> dict[str, Any]:
    """Train each of the best again, and the best of these with all seeds; register the winner as `name`, and move the
    alias. Returns their part of `--json`.

    Earlier re-trainings and registrations are reused; failed re-trainings are retried. Raises Interrupted after a
    signal, UserError if no candidate could be trained.
    """
    settings, store, plan = context.settings, context.store, context.plan
    tasks = [Retraining(each, 1) for each in best]
    if len(best) > N_FINALISTS:
        once = sorted(_retrain(context, tasks, run_id), key=lambda each: each.overall_mean, reverse=True)
        best = [each.candidate for each in once[:N_FINALISTS]]
    tasks += [Retraining(each, replicate) for each in best for replicate in range(2, settings.n_seeds + 1)]
    retrained = _retrain(context, tasks, run_id)
    context.stopwatch.lap("training the best again")
    _print_retrained(retrained)
    facts = {"study": study, "seed": plan.seed, "data_sha256": plan.half.data_sha256}
    facts["winner_key"] = winner_key(retrained, plan, settings.n_seeds)
    version = _register(context, name, retrained[0], facts, run_id)
    promoted, message = _move_best(store, version, force=settings.promote)
    say(message)
    scores, uri = retrained[0].scores(), f"models:/{name}/{version.version}"
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": uri})
    n_failed = len(tasks) - sum(len(each.trainings) for each in retrained)
    result = {"study": study, "model_uri": uri, "version": int(version.version), "promoted": promoted}
    return result | scores | {"trial": retrained[0].candidate.trial, "n_failed": n_failed}


def _retrain(context: SearchContext, tasks: Sequence[Retraining], run_id: str) -> list[Retrained]:
    """Do the re-trainings, reusing earlier ones of run `run_id`; sorted by finished seeds, then mean accuracy."""
    plan, workers = context.plan, context.workers

    def training(task: Retraining) -> Training:
        candidate, replicate = task
        name, facts = f"{candidate.name} seed {replicate}", plan.facts() | {"replicate": replicate}
        return Training.of(name, candidate.spec, candidate.recipe, plan.device, facts)

    log = TrainedNetworks[Retraining](context.store, TUNING, run_id, Role.RETRAINED, half=plan.half, training=training)
    todo = log.todo(tasks, "re-trainings")
    with Progress("training the best again", len(todo)) as progress:
        run_logged(workers, retrain_one, plan, todo, log=log, progress=progress, debug=context.settings.debug)
    trainings: dict[Candidate, tuple[Trained, ...]] = {}
    for task, trained in log.collect(tasks, "re-trainings", workers.stop).items():
        trainings[task.candidate] = (*trainings.get(task.candidate, ()), trained)
    if not trainings:
        raise UserError("every re-training of the best configurations failed; their runs in MLflow say why")
    retrained = [Retrained(*item) for item in trainings.items()]
    # A candidate with a failed seed comes after those with more finished seeds.
    return sorted(retrained, key=lambda each: (-len(each.trainings), -statistics.mean(each.val_accuracies)))


def _print_retrained(retrained: Sequence[Retrained]) -> None:
    say_heading("Validation accuracy in percent, in the search and trained again; test accuracy of the first")
    rows = []
    for each in retrained:
        search, mean, sd, test = ("-" if x is None else f"{100 * x:.2f}" for x in each.scores().values())
        cost, minutes = f"{training_cost(each.candidate.spec):.2f}", f"{each.trainings[0].seconds / 60:.1f}"
        rows.append([each.candidate.name, search, mean, sd, str(len(each.trainings)), test, cost, minutes])
    print_table(["configuration", "search", "again", "sd", "seeds", "test", "cost", "minutes"], rows)


def winner_key(retrained: Sequence[Retrained], plan: Plan, n_seeds: int) -> str:
    """Key by which a repeated command finds its registered version: equal for equal work with equal results."""
    configurations = [(each.candidate.spec.to_dict(), each.candidate.recipe.to_dict()) for each in retrained]
    accuracies = [each.val_accuracies for each in retrained]
    facts = {"n_seeds": n_seeds, "configurations": configurations, "accuracies": accuracies} | plan.facts()
    return identity(device=plan.device, **facts).key


def _register(context: SearchContext, name: str, winner: Retrained, facts: dict[str, Any], run_id: str) -> ModelVersion:
    """Register the winner's first re-trained network as `name`, or return the version with the same winner key.

    The network is not chosen by its own score, so its test accuracy is fair. `facts` (study, seed, data sha256, winner
    key) and the scores become tags of the version.
    """
    store, split = context.store, context.plan.split
    for version in versions_of(store, name):
        if version.tags.get("winner_key") == facts["winner_key"] and not is_gone(store, version):
            return version
    candidate, trained, scores, n_seeds = winner.candidate, winner.trainings[0], winner.scores(), len(winner.trainings)
    facts = facts | scores | {"trial": candidate.trial, "n_seeds": n_seeds}
    state = load_weights(store, trained.run_id, candidate.spec)
    model = TrainedModel(candidate.spec, candidate.recipe, split, state, facts)
    experiment_id, origin = store.experiment(TUNING), candidate.name
    if candidate.trial is not None:  # FINISHED excludes a run whose logging was cut off
        tags = {"role": Role.TRIAL, "parent": run_id, "trial": str(candidate.trial)}
        for run in store.find(TUNING, status="FINISHED", **tags)[:1]:
            origin = f"[{run.info.run_name}]({run_page(experiment_id, run.info.run_id)})"
    sd = "" if scores["retrained_sd"] is None else f" ± {scores['retrained_sd']:.2%} (sd)"
    study, network = run_page(experiment_id, run_id), run_page(experiment_id, trained.run_id)
    description = (
        f"CNN2 trained on Fashion-MNIST classes {digits(split.source)}; configuration: {origin}, run "
        f"[{facts['study']}]({study}). Validation accuracy {scores['retrained_mean']:.2%}{sd} over "
        f"{counted(n_seeds, 'fresh seed')}; [this network]({network}), the first of them, has test accuracy "
        f"{trained.test_accuracy:.2%}.\n\nInput: float32 [n, 1, 28, 28], pixels scaled to [0, 1], minus 0.2860, over "
        "0.3530. Output: logits of the classes in ascending order."
    )
    return register(store, trained.run_id, name, model, tags=facts | {"split": split}, description=description)


def _move_best(store: Store, version: ModelVersion, *, force: bool) -> tuple[bool, str]:
    """Point alias `best` to `version` if it has the higher score on the same split and data, or if `force`.

    Returns whether `best` points to it now, and a message that says why.
    """
    new, tags = f"{version.name} version {version.version}", version.tags
    with locked(store.uri, "model", f"model-{version.name}", wait_seconds=60):  # another search may be moving it
        current = best_version(store, version.name)
        if current is None:
            set_best(store, version)
            return True, f"best -> {new}"
        old, old_tags = f"version {current.version}", current.tags
        if str(current.version) == str(version.version):
            return True, f"best already points to {new}"
        if is_gone(store, current):
            better, why = True, f"the model of {old} was deleted"
        elif any(old_tags.get(key) != tags.get(key) for key in ("split", "data_sha256")):
            better, why = False, f"{old} was measured on another split or data"
        else:
            mean, old_mean = (float(each.get("retrained_mean", "nan")) for each in (tags, old_tags))
            better, why = mean > old_mean, f"re-trained validation accuracy {mean:.2%} against {old_mean:.2%} of {old}"
        if not better and not force:
            return False, f"best stays at {old}, {new} is registered: {why}. Add --promote to move it anyway"
        set_best(store, version)
        return True, f"best -> {new}: {why}" + ("" if better else ", by --promote")
