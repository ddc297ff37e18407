"""Source networks as MLflow runs below the sweep's parent, with their weights: found again by the next command."""

from torch import Tensor

from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.store.metric_rows import settings_params
from fmnist_transfer.store.model_format import finish_with_weights, load_weights
from fmnist_transfer.store.open_runs import OpenRuns
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.score import Result
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Outcome
from sweeps.training.source_networks import PretrainingPlan, pretrain


class SourceLog:
    """The source networks of one sweep, as `run_logged` wants a log of tasks; a task is a replicate.

    The caller owns the sweep, so whatever is RUNNING at the start was left by a dead process.
    """

    def __init__(self, store: Store, parent: str, plan: PretrainingPlan):
        self._plan = plan
        self._runs = OpenRuns[int](store, TRANSFER, parent, Role.SOURCE, half=plan.half, half_role="source")
        self.finished: dict[int, str] = {}
        """Replicate -> run."""
        for run in store.find(TRANSFER, role=Role.SOURCE, parent=parent):
            if run.info.status == "RUNNING":
                store.end(run.info.run_id, "KILLED")
            elif run.info.status == "FINISHED":
                self.finished[int(run.data.params["replicate"])] = str(run.info.run_id)

    def name(self, task: int) -> str:
        return f"source r{task}"

    def begin(self, task: int) -> None:
        plan = self._plan
        params = settings_params(plan.spec, plan.recipe) | {"replicate": task, "seed": plan.seed}
        self._runs.begin(task, self.name(task), params, {"replicate": task})

    def report(self, task: int, news: int) -> tuple[float, str]:
        return news / self._plan.recipe.epochs, f"{self.name(task)}: epoch {news}"

    def end(self, outcome: Outcome[int, Result]) -> str | None:
        """Log the result with its weights, the failure, or that the task is to be done again."""
        if outcome.status == "interrupted":
            self._runs.kill(outcome.task, outcome.reason)
            return None
        if outcome.result is None:
            self._runs.fail(outcome.task, outcome.reason, outcome.details)
        elif run_id := finish_with_weights(self._runs, outcome.task, outcome.result):
            self.finished[outcome.task] = run_id
        return ""

    def close(self) -> None:
        self._runs.kill_rest()


def source_networks(
    store: Store, parent: str, plan: PretrainingPlan, n: int, workers: Workers, *, debug: bool
) -> tuple[dict[str, Tensor], ...]:
    """Weights of the source networks of replicates 0 ... n - 1; those that are missing are trained.

    Raises Interrupted after a signal, UserError if one cannot be trained.

    Args:
        parent: run of the sweep, whose identity they share and which the caller owns.
    """
    log = SourceLog(store, parent, plan)
    todo = [replicate for replicate in range(n) if replicate not in log.finished]
    say(f"A source network for each replicate: {n - len(todo)} of {n} are there")
    with Progress("source networks", len(todo)) as progress:
        run_logged(workers, pretrain, plan, todo, log=log, progress=progress, debug=debug)
    workers.stop.raise_if_set(f"{len(log.finished)} of {n} source networks trained; {SAME_COMMAND}")
    if missing := [replicate for replicate in range(n) if replicate not in log.finished]:
        raise UserError(f"source networks {missing} could not be trained; their runs in MLflow say why")
    return tuple(load_weights(store, log.finished[replicate], plan.spec) for replicate in range(n))
