"""Train the top configurations again with fresh seeds, an MLflow run each.

The best of N validation accuracies is optimistic; the mean over fresh seeds is not. Workers import this module, so it
imports no mlflow.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fmnist_transfer.console import Progress, print_table, say
from fmnist_transfer.data import Half, nested_order, on_device
from fmnist_transfer.errors import UserError
from fmnist_transfer.model import CNN2Spec, fresh_network
from fmnist_transfer.parallel import Outcome, Workers
from fmnist_transfer.recipe import Precision, Recipe
from fmnist_transfer.seeding import Streams
from fmnist_transfer.split import Split
from fmnist_transfer.stopping import StopSignal
from fmnist_transfer.training import Result, fit_and_score

if TYPE_CHECKING:
    from fmnist_transfer.tracking import Store


@dataclass(frozen=True)
class Candidate:
    """A configuration to train again. `trial` and `search_score` are None for the reference."""

    spec: CNN2Spec
    recipe: Recipe
    trial: int | None = None
    search_score: float | None = None

    @property
    def name(self) -> str:
        return "reference" if self.trial is None else f"trial {self.trial:03d}"


class Retraining(NamedTuple):
    """One task: a candidate with a fresh seed. Replicate 0 is the search's own, so fresh ones start at 1."""

    candidate: Candidate
    replicate: int

    @property
    def name(self) -> str:
        return f"{self.candidate.name} seed {self.replicate}"


@dataclass(frozen=True)
class RetrainingPlan:
    seed: int
    device: str
    precision: Precision
    split: Split
    half: Half


@dataclass(frozen=True)
class Retrained:
    """A candidate's scores over its fresh seeds, and the run and result of the first."""

    candidate: Candidate
    val_accuracies: tuple[float, ...]
    run_id: str
    result: Result

    @property
    def mean(self) -> float:
        return statistics.mean(self.val_accuracies)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.val_accuracies) if len(self.val_accuracies) > 1 else None


def retrain_one(
    plan: RetrainingPlan, task: Retraining, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Result:
    """Train the candidate on the whole source half, in a worker."""
    streams = Streams(plan.seed, task.replicate)
    half = on_device(plan.half, plan.device)
    order = nested_order(plan.half.train.labels, streams.generator("subset")).to(plan.device)
    network = fresh_network(task.candidate.spec, streams).to(plan.device)
    return fit_and_score(
        network,
        half.train.take(order),
        half,
        task.candidate.recipe,
        streams,
        precision=plan.precision,
        on_epoch=lambda epoch: report((epoch.epoch, epoch.val_accuracy)),
        should_stop=should_stop,
    )


def retrain(
    store: "Store",
    parent: str,
    candidates: list[Candidate],
    plan: RetrainingPlan,
    *,
    n_seeds: int,
    workers: Workers,
    stop: StopSignal,
) -> list[Retrained]:
    """Train each candidate `n_seeds` times, an MLflow run each; the best mean validation accuracy first.

    Raises Interrupted after a signal, UserError if no candidate could be trained.
    """
    tasks = [Retraining(candidate, replicate) for candidate in candidates for replicate in range(1, n_seeds + 1)]
    done: dict[Retraining, tuple[str, Result]] = {}
    with Progress("training the best again", len(tasks)) as progress:

        def show(task: Retraining, news: tuple[int, float]) -> None:
            epochs = task.candidate.recipe.epochs
            note = f"{task.name}: epoch {news[0]}/{epochs}, {news[1]:.2%}"
            progress.working(task, news[0] / epochs, note)

        for outcome in workers.run(retrain_one, plan, tasks, on_report=show):
            if outcome.status in ("failed", "lost"):
                again = "; once more" if outcome.status == "lost" else ""
                say(f"{outcome.task.name} {outcome.status}: {outcome.reason}{again}")
            if outcome.status != "lost":
                progress.finished(outcome.task)
            if outcome.status in ("done", "failed"):
                run_id = _log(store, parent, plan, outcome)
                if outcome.result:
                    done[outcome.task] = (run_id, outcome.result)
    stop.raise_if_set(
        f"stopped in training the best again ({len(done)} of {len(tasks)}); the trials are kept, and the same command "
        "begins this stage anew"
    )
    retrained = []
    for candidate in candidates:
        finished = [task for task in tasks if task.candidate == candidate and task in done]
        if finished:
            accuracies = tuple(done[task][1].final["val"].accuracy for task in finished)
            retrained.append(Retrained(candidate, accuracies, *done[finished[0]]))
    if not retrained:
        raise UserError("none of the best configurations could be trained again; their runs in MLflow say why")
    return sorted(retrained, key=lambda one: (-len(one.val_accuracies), -one.mean))  # a seed that failed counts most


def _log(store: "Store", parent: str, plan: RetrainingPlan, outcome: Outcome[Retraining, Result]) -> str:
    from fmnist_transfer.tracking import TUNING, curve_rows, score_rows, settings_params

    task, result = outcome.task, outcome.result
    params = settings_params(task.candidate.spec, task.candidate.recipe) | {
        "replicate": task.replicate,
        "seed": plan.seed,
        "split": plan.split,
        "data_sha256": plan.half.data_sha256,
        "device": plan.device,
        "precision": plan.precision,
    }
    tags = {"role": "retrained", "parent": parent} | ({"reason": outcome.reason} if outcome.reason else {})
    run_id = store.start(TUNING, task.name, parent=parent, params=params, tags=tags)
    store.log_data(run_id, plan.half, "source")
    if result:
        store.log(run_id, metrics=[*curve_rows(result.epochs), *score_rows(result)])
    store.end(run_id, "FINISHED" if result else "FAILED")
    return run_id


def print_retrained(retrained: Sequence[Retrained]) -> None:
    """A line for each candidate."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    say(
        "Validation accuracy in percent: in the search, and trained again with fresh seeds; test accuracy of the first:"
    )
    print_table(
        ["configuration", "search", "again", "sd", "seeds", "test", "minutes"],
        [
            [
                one.candidate.name,
                percent(one.candidate.search_score),
                percent(one.mean),
                percent(one.sd),
                str(len(one.val_accuracies)),
                percent(one.result.test.accuracy),
                f"{one.result.seconds / 60:.1f}",
            ]
            for one in retrained
        ],
    )
