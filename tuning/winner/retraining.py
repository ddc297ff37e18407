"""Train the top configurations again with fresh seeds; `retraining_log.py` makes an MLflow run of each.

The best of N validation accuracies is optimistic; the mean over fresh seeds is not. Workers import this module, so it
imports no mlflow.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.seeding import Streams
from fmnist_transfer.terminal.output import print_table, say, say_heading
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.score import Result
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from tuning.winner.plan import Candidate, Retrained, Retraining, RetrainingPlan

if TYPE_CHECKING:
    from tuning.winner.retraining_log import RetrainingLog


def retrain_one(
    plan: RetrainingPlan, task: Retraining, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Result:
    """Train the candidate on the whole source half, in a worker."""
    return train_on_half(
        task.candidate.spec,
        plan.half,
        task.candidate.recipe,
        Streams(plan.seed, task.replicate),
        plan.device,
        precision=plan.precision,
        on_epoch=lambda epoch: report((epoch.epoch, epoch.val_accuracy)),
        should_stop=should_stop,
    )


def retrain(
    log: "RetrainingLog",
    candidates: list[Candidate],
    plan: RetrainingPlan,
    *,
    workers: Workers,
) -> list[Retrained]:
    """Train each candidate with each of its seeds, or find what was trained before; the best mean accuracy first.

    Raises Interrupted after a signal, UserError if no candidate could be trained.
    """
    tasks = [Retraining(candidate, replicate) for candidate in candidates for replicate in range(1, plan.n_seeds + 1)]
    done = {task: trained for task in tasks if (trained := log.trained(task))}
    todo = [task for task in tasks if task not in done]
    if done:
        say(f"{len(done)} of {len(tasks)} re-trainings are there already")
    outage = Outage(workers.stop)
    with Progress("training the best again", len(todo)) as progress:

        def begin(task: Retraining) -> None:
            with outage.held():
                log.begin(task)

        def show(task: Retraining, news: tuple[int, float]) -> None:
            epochs = task.candidate.recipe.epochs
            note = f"{task.name}: epoch {news[0]}/{epochs}, {news[1]:.2%}"
            progress.working(task, news[0] / epochs, note)

        for outcome in workers.run(retrain_one, plan, todo, on_start=begin, on_report=show):
            if outcome.status in ("failed", "lost"):
                again = "; once more" if outcome.status == "lost" else ""
                say(f"{outcome.task.name} {outcome.status}: {outcome.reason}{again}")
            if outcome.status in ("done", "failed"):
                progress.finished(outcome.task)
            else:
                progress.abandoned(outcome.task)
            with outage.held():
                if outcome.result:
                    done[outcome.task] = log.finish(outcome.task, outcome.result)
                elif outcome.status == "failed":
                    log.fail(outcome.task, outcome.reason)
                else:
                    log.interrupt(outcome.task, outcome.reason)
    outage.raise_if_any()
    workers.stop.raise_if_set(f"stopped in training the best again: {len(done)} of {len(tasks)} done; {SAME_COMMAND}")
    retrained = []
    for candidate in candidates:
        finished = [done[task] for task in tasks if task.candidate == candidate and task in done]
        if finished:
            accuracies = tuple(trained.val_accuracy for trained in finished)
            first = finished[0]
            retrained.append(Retrained(candidate, accuracies, first.run_id, first.test_accuracy, first.seconds))
    if not retrained:
        raise UserError("none of the best configurations could be trained again; their runs in MLflow say why")
    # A failed seed counts most.
    return sorted(retrained, key=lambda each: (-len(each.val_accuracies), -each.mean))


def print_retrained(retrained: Sequence[Retrained]) -> None:
    """A line for each candidate."""

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
