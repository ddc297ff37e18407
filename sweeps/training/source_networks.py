"""A source network for each replicate, so that what differs between pretrainings counts, too.

The registered configuration is trained on the source half with fresh draws; each network is a run under the sweep's
parent, with its weights, and is found again. Workers import this module, so it imports no mlflow.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.seeding import Streams
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.fit import train_on_half
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Result
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from fmnist_transfer.workers.task import Outcome

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store


Ended = Literal["FAILED", "KILLED"]


@dataclass(frozen=True)
class PretrainingPlan:
    """What all source networks share."""

    half: Half
    """The source half."""
    spec: CNN2Spec
    recipe: Recipe
    seed: int
    device: str
    precision: Precision


def pretrain(
    plan: PretrainingPlan, replicate: int, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Result:
    """Train the source network of one replicate, in a worker. Reports each epoch's number."""
    return train_on_half(
        plan.spec,
        plan.half,
        plan.recipe,
        Streams(plan.seed, replicate, stage="pretraining"),
        plan.device,
        precision=plan.precision,
        on_epoch=lambda epoch: report(epoch.epoch),
        should_stop=should_stop,
    )


def source_networks(
    store: "Store", parent: str, plan: PretrainingPlan, n: int, workers: Workers
) -> tuple[dict[str, Tensor], ...]:
    """Weights of the source networks of replicates 0 ... n - 1; those that are not there are trained.

    Raises Interrupted after a signal, UserError if one cannot be trained.

    Args:
        parent: run of the sweep, whose identity they share and which the caller owns.
    """
    from fmnist_transfer.store.model_format import load_weights
    from fmnist_transfer.store.roles import TRANSFER, Role

    for run in store.find(TRANSFER, status="RUNNING", role=Role.SOURCE, parent=parent):
        store.end(run.info.run_id, "KILLED")  # its process died
    finished = store.find(TRANSFER, status="FINISHED", role=Role.SOURCE, parent=parent)
    runs = {int(run.data.params["replicate"]): str(run.info.run_id) for run in finished}
    todo = [replicate for replicate in range(n) if replicate not in runs]
    say(f"A source network for each replicate: {n - len(todo)} of {n} are there")
    runs |= _train(store, parent, plan, todo, workers)
    workers.stop.raise_if_set(f"{len(runs)} of {n} source networks trained; {SAME_COMMAND}")
    if missing := [replicate for replicate in range(n) if replicate not in runs]:
        raise UserError(f"source networks {missing} could not be trained; their runs in MLflow say why")
    return tuple(load_weights(store, runs[replicate], plan.spec) for replicate in range(n))


def _train(store: "Store", parent: str, plan: PretrainingPlan, todo: list[int], workers: Workers) -> dict[int, str]:
    """Train the source networks of the replicates `todo`; replicate -> run of those that are finished."""
    from fmnist_transfer.store.metric_rows import settings_params
    from fmnist_transfer.store.model_format import finished_with_weights
    from fmnist_transfer.store.pending_results import PendingResult
    from fmnist_transfer.store.roles import TRANSFER, Role

    begun: dict[int, str] = {}
    runs: dict[int, str] = {}
    outage = Outage(workers.stop)

    def begin(replicate: int) -> None:
        params = settings_params(plan.spec, plan.recipe) | {"replicate": replicate, "seed": plan.seed}
        tags = {"role": Role.SOURCE, "parent": parent, "replicate": replicate}
        with outage.held():
            begun[replicate] = store.start(TRANSFER, f"source r{replicate}", parent=parent, params=params, tags=tags)
            store.log_data(begun[replicate], plan.half, "source")

    def show(replicate: int, epoch: int) -> None:
        progress.working(replicate, epoch / plan.recipe.epochs, f"source r{replicate}: epoch {epoch}")

    def log(run_id: str, outcome: Outcome[int, Result]) -> None:
        if outcome.result:
            store.conclude(finished_with_weights(run_id, outcome.result))
            runs[outcome.task] = run_id
        else:
            say(f"source r{outcome.task} {outcome.status}: {outcome.reason}")
            ended: Ended = "FAILED" if outcome.status == "failed" else "KILLED"
            store.conclude(PendingResult(run_id, ended, tags={"reason": outcome.reason}))

    try:
        with Progress("source networks", len(todo)) as progress:
            for outcome in workers.run(pretrain, plan, todo, on_start=begin, on_report=show):
                if outcome.status in ("done", "failed"):
                    progress.finished(outcome.task)
                else:
                    progress.abandoned(outcome.task)
                if outcome.task in begun:  # else the store was lost before it began
                    with outage.held():
                        log(begun.pop(outcome.task), outcome)
    finally:
        for run_id in begun.values():  # something else went wrong, which is then the one to see
            with contextlib.suppress(Exception):
                store.conclude(PendingResult(run_id, "KILLED", tags={"reason": "the sweep ended before it"}))
    outage.raise_if_any()
    return runs
