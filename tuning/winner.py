"""Train the best again with fresh seeds, register the winner, and move alias `best` to it if it is better."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import UserError
from fmnist_transfer.identity import identity
from fmnist_transfer.logged_tasks import Trained, TrainedNetworks, Training, run_logged
from fmnist_transfer.network.cost import training_cost
from fmnist_transfer.store.links import experiment_page, model_page, run_page
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.model_format import TrainedModel, load_weights
from fmnist_transfer.store.registry import ModelVersion, best_version, is_gone, register, set_best, versions_of
from fmnist_transfer.store.roles import TUNING, Role, View
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, print_table, say, say_heading
from fmnist_transfer.terminal.progress import Progress
from tuning.trainings import Candidate, Plan, Retraining, retrain_one
from tuning.trials import SearchContext

N_FINALISTS = 2  # configurations trained again with all seeds


class Retrained(NamedTuple):
    candidate: Candidate
    trainings: tuple[Trained, ...]  # the finished ones, at least one

    @property
    def val_accuracies(self) -> list[float]:
        return [training.val_accuracy for training in self.trainings]

    @property
    def overall_mean(self) -> float:
        """Mean of the search's score and the re-trainings: one varies by 0.2 points, as much as good ones differ."""
        return statistics.mean([self.candidate.search_score or self.val_accuracies[0], *self.val_accuracies])

    def scores(self) -> dict[str, float | None]:
        """Scores by their names in `--json`, tags and metrics; the first is optimistic, as the best of many."""
        return {
            "best_of_n": self.candidate.search_score,
            "retrained_mean": statistics.mean(self.val_accuracies),
            "retrained_sd": statistics.stdev(self.val_accuracies) if len(self.trainings) > 1 else None,
            "test_accuracy": self.trainings[0].test_accuracy,  # of the network that is registered
        }


def register_best(context: SearchContext, best: list[Candidate], run_id: str, study: str, name: str) -> dict[str, Any]:
    """Train the best again, register the winner as `name`, and move the alias. Returns their part of `--json`.

    What an earlier command trained or registered is reused. Raises Interrupted after a signal.
    """
    store, plan = context.store, context.plan
    store.log_data(run_id, plan.half, "source")
    retrained, n_failed = _retrain(context, best, run_id)
    context.stopwatch.lap("training the best again")
    _print_retrained(retrained)
    winner, scores = retrained[0], retrained[0].scores()
    outcome: dict[str, Any] = {"study": study, "trial": winner.candidate.trial} | scores
    facts = outcome | {"seed": plan.seed, "data_sha256": plan.half.data_sha256, "n_seeds": len(winner.trainings)}
    facts["winner_key"] = winner_key(retrained, plan, context.settings.n_seeds)
    version = _register(context, name, winner, facts, run_id)
    promoted = _move_best(store, version, force=context.settings.promote)
    uri = f"models:/{name}/{version.version}"
    metrics = [(key, value, 0) for key, value in scores.items() if value is not None]
    store.log(run_id, metrics=metrics, tags={"registered": uri})
    trials = f"[Trials, the best first]({experiment_page(store.experiment(TUNING), View.TRIALS)})"
    winner_page = f"[{name} version {version.version}]({model_page(name, version.version)})"
    store.describe(run_id, f"The best network of this search, trained again, is {winner_page}. {trials}")
    return outcome | {"model_uri": uri, "version": int(version.version), "promoted": promoted, "n_failed": n_failed}


def _retrain(context: SearchContext, best: list[Candidate], run_id: str) -> tuple[list[Retrained], int]:
    """Train each of the best with one seed, and the best of these with all; return them ranked, and the failures."""
    plan, workers, n_seeds = context.plan, context.workers, context.settings.n_seeds

    def training(task: Retraining) -> Training:
        candidate, replicate = task
        name, facts = f"{candidate.name} seed {replicate}", plan.facts() | {"replicate": replicate}
        return Training.of(name, candidate.spec, candidate.recipe, plan.device, facts)

    log = TrainedNetworks[Retraining](context.store, TUNING, run_id, Role.RETRAINED, half=plan.half, training=training)

    def train(tasks: list[Retraining]) -> dict[Retraining, Trained]:
        todo = log.todo(tasks, "re-trainings")
        with Progress("training the best again", len(todo)) as progress:
            run_logged(workers, retrain_one, plan, todo, log=log, progress=progress, debug=context.settings.debug)
        return log.collect(tasks, "re-trainings", workers.stop)

    n_first = 1 if len(best) > N_FINALISTS else n_seeds
    tasks = [Retraining(each, replicate) for replicate in range(1, n_first + 1) for each in best]
    trained = train(tasks)
    finalists = sorted(_ranked(trained), key=lambda each: each.overall_mean, reverse=True)[:N_FINALISTS]
    seeds = range(n_first + 1, n_seeds + 1)
    if more := [Retraining(each.candidate, replicate) for each in finalists for replicate in seeds]:
        trained |= train(more)
    if not trained:
        raise UserError("every re-training of the best configurations failed; their runs in MLflow say why")
    return _ranked(trained), len(tasks) + len(more) - len(trained)


def _ranked(trained: dict[Retraining, Trained]) -> list[Retrained]:
    """Group by candidate; those with a failed seed come after those with more finished seeds, then the mean decides."""
    candidates = dict.fromkeys(task.candidate for task in trained)
    retrained = [Retrained(each, tuple(trained[task] for task in trained if task[0] == each)) for each in candidates]
    return sorted(retrained, key=lambda each: (-len(each.trainings), -statistics.mean(each.val_accuracies)))


def _print_retrained(retrained: Sequence[Retrained]) -> None:
    say_heading("Validation accuracy in percent, in the search and trained again; test accuracy of the first")
    rows = []
    for each in retrained:
        scores = ["-" if score is None else f"{100 * score:.2f}" for score in each.scores().values()]
        cost = f"{training_cost(each.candidate.spec):.2f}"
        rows.append([each.candidate.name, *scores, str(len(each.trainings)), cost])
    print_table(["configuration", "search", "again", "sd", "test", "seeds", "cost"], rows)


def winner_key(retrained: Sequence[Retrained], plan: Plan, n_seeds: int) -> str:
    """Key by which a repeated command finds its registered version: equal for equal work with equal results."""
    configurations = [(each.candidate.spec.to_dict(), each.candidate.recipe.to_dict()) for each in retrained]
    accuracies = [each.val_accuracies for each in retrained]
    facts = {"n_seeds": n_seeds, "configurations": configurations, "accuracies": accuracies} | plan.facts()
    return identity(device=plan.device, **facts).key


def _register(context: SearchContext, name: str, winner: Retrained, facts: dict[str, Any], run_id: str) -> ModelVersion:
    """Register the winner's first re-trained network as `name`, or return the version with the same winner key.

    The network is not chosen by its own score, so its test accuracy is fair. `facts` become tags of the version.
    """
    store, split = context.store, context.plan.split
    for version in versions_of(store, name):
        if version.tags.get("winner_key") == facts["winner_key"] and not is_gone(store, version):
            return version
    candidate, network = winner.candidate, winner.trainings[0].run_id
    state = load_weights(store, network, candidate.spec)
    model = TrainedModel(candidate.spec, candidate.recipe, split, state, facts)
    study, training = (run_page(store.experiment(TUNING), run) for run in (run_id, network))
    sd = "" if facts["retrained_sd"] is None else f" ± {facts['retrained_sd']:.2%} (sd)"
    description = (
        f"CNN2 trained on Fashion-MNIST classes {digits(split.source)}; configuration: {candidate.name}, run "
        f"[{facts['study']}]({study}). Validation accuracy {facts['retrained_mean']:.2%}{sd} over "
        f"{counted(facts['n_seeds'], 'fresh seed')}; [this network]({training}), the first of them, has test accuracy "
        f"{facts['test_accuracy']:.2%}.\n\nInput: float32 [n, 1, 28, 28], pixels scaled to [0, 1], minus 0.2860, over "
        "0.3530. Output: logits of the classes in ascending order."
    )
    return register(store, network, name, model, tags=facts | {"split": split}, description=description)


def _move_best(store: Store, version: ModelVersion, *, force: bool) -> bool:
    """Point alias `best` to `version` if it is better, or if `force`; return whether it points to it now."""
    name, number = version.name, str(version.version)
    with locked(store.uri, "model", f"model-{name}", wait_seconds=60):  # another search may be moving it
        old, tags = best_version(store, name), version.tags
        if old and str(old.version) != number and not force and not is_gone(store, old):
            mean, old_mean = (float(each.get("retrained_mean", "nan")) for each in (tags, old.tags))
            if not mean > old_mean or any(tags.get(key) != old.tags.get(key) for key in ("split", "data_sha256")):
                why = f"version {number} does not beat it on the same split and data; --promote moves it anyway"
                say(f"best stays at {name} version {old.version}: {why}")
                return False
        set_best(store, version)
    say(f"best -> {name} version {number}")
    return True
