"""Train the top configurations again with fresh seeds.

The best of N validation accuracies is an optimistic estimate; the mean over fresh seeds is not.
"""

from collections.abc import Sequence

from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.identity import identity
from fmnist_transfer.logged_tasks import TrainedNetworks, Training, run_logged
from fmnist_transfer.store.roles import TUNING, Role, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import print_table, say, say_heading
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from tuning.winner.plan import Candidate, Retrained, Retraining, RetrainingPlan, retrain_one


def retraining_log(store: Store, parent: str, plan: RetrainingPlan) -> TrainedNetworks[Retraining]:
    """The log of re-trainings below the search's run `parent`."""

    def training(task: Retraining) -> Training:
        candidate, replicate = task.candidate, task.replicate
        params = settings_params(candidate.spec, candidate.recipe) | plan.facts() | {"replicate": replicate}
        work = identity(device=plan.device, **params)
        return Training(task.name, params | {"device": plan.device}, work.key, candidate.recipe.epochs)

    return TrainedNetworks(store, TUNING, parent, Role.RETRAINED, half=plan.half, training=training)


def retrain(
    log: TrainedNetworks[Retraining],
    candidates: list[Candidate],
    plan: RetrainingPlan,
    *,
    workers: Workers,
    debug: bool,
) -> list[Retrained]:
    """Train each candidate with each seed, reusing earlier trainings; sorted by finished seeds, then mean accuracy.

    Raises Interrupted after a signal, UserError if no candidate could be trained.
    """
    tasks = [Retraining(candidate, replicate) for candidate in candidates for replicate in range(1, plan.n_seeds + 1)]
    todo = [task for task in tasks if log.trained(task) is None]
    if len(todo) < len(tasks):
        say(f"{len(tasks) - len(todo)} of {len(tasks)} re-trainings are done already")
    with Progress("training the best again", len(todo)) as progress:
        run_logged(workers, retrain_one, plan, todo, log=log, progress=progress, debug=debug)
    n_done = sum(log.trained(task) is not None for task in tasks)
    workers.stop.raise_if_set(f"stopped while training the best again: {n_done} of {len(tasks)} done; {SAME_COMMAND}")
    retrained = []
    for candidate in candidates:
        own = (log.trained(task) for task in tasks if task.candidate == candidate)
        finished = [trained for trained in own if trained is not None]
        if finished:
            accuracies = tuple(trained.val_accuracy for trained in finished)
            first = finished[0]
            retrained.append(Retrained(candidate, accuracies, first.run_id, first.test_accuracy, first.seconds))
    if not retrained:
        raise UserError("every re-training of the best configurations failed; their runs in MLflow say why")
    # A candidate with a failed seed comes after those with more finished seeds.
    return sorted(retrained, key=lambda each: (-len(each.val_accuracies), -each.mean))


def print_retrained(retrained: Sequence[Retrained]) -> None:
    """Print a table with one line per candidate."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    say_heading("Validation accuracy in percent, in the search and trained again; test accuracy of the first")
    print_table(
        ["configuration", "search", "again", "sd", "seeds", "test", "minutes"],
        [
            [
                configuration.candidate.name,
                percent(configuration.candidate.search_score),
                percent(configuration.mean),
                percent(configuration.sd),
                str(len(configuration.val_accuracies)),
                percent(configuration.test_accuracy),
                f"{configuration.seconds / 60:.1f}",
            ]
            for configuration in retrained
        ],
    )
