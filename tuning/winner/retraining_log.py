"""Re-trainings as MLflow runs, with their weights: what was trained once is found again when it is asked for again."""

from typing import Literal, NamedTuple

from fmnist_transfer.identity import identity
from fmnist_transfer.store.metric_rows import settings_params
from fmnist_transfer.store.model_format import finished_with_weights
from fmnist_transfer.store.pending_results import PendingResult
from fmnist_transfer.store.roles import SECONDS, TEST_ACCURACY, TUNING, VAL_ACCURACY, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.score import Result
from tuning.winner.plan import Retraining, RetrainingPlan


class Trained(NamedTuple):
    """A finished re-training, as its run has it."""

    run_id: str
    val_accuracy: float
    test_accuracy: float
    seconds: float


class RetrainingLog:
    """The re-trainings of one search. The caller owns the search, so runs that still are RUNNING died."""

    def __init__(self, store: Store, parent: str, plan: RetrainingPlan):
        self._store, self._parent, self._plan = store, parent, plan
        for run in store.find(TUNING, status="RUNNING", role=Role.RETRAINED, parent=parent):
            store.end(run.info.run_id, "KILLED")
        finished = store.find(TUNING, status="FINISHED", role=Role.RETRAINED, parent=parent)
        self._finished = {run.data.tags.get("retraining_key", ""): run for run in finished}
        self._begun: dict[Retraining, str] = {}

    def trained(self, task: Retraining) -> Trained | None:
        """What the task gave before."""
        if (run := self._finished.get(self._key(task))) is None:
            return None
        metrics = run.data.metrics
        return Trained(run.info.run_id, metrics[VAL_ACCURACY], metrics[TEST_ACCURACY], metrics[SECONDS])

    def begin(self, task: Retraining) -> None:
        tags = {"role": Role.RETRAINED, "parent": self._parent, "retraining_key": self._key(task)}
        params = settings_params(task.candidate.spec, task.candidate.recipe) | self._plan.facts()
        params |= {"replicate": task.replicate, "device": self._plan.device}
        run_id = self._store.start(TUNING, task.name, parent=self._parent, params=params, tags=tags)
        self._begun[task] = run_id
        self._store.log_data(run_id, self._plan.half, "source")

    def finish(self, task: Retraining, result: Result) -> Trained:
        """Log the result with its weights, then FINISHED."""
        run_id = self._begun.pop(task)
        self._store.conclude(finished_with_weights(run_id, result))
        return Trained(run_id, result.final.val.accuracy, result.test.accuracy, result.seconds)

    def fail(self, task: Retraining, reason: str) -> None:
        self._end(task, "FAILED", reason)

    def interrupt(self, task: Retraining, reason: str) -> None:
        """End the run KILLED: the task is to be done again."""
        self._end(task, "KILLED", reason)

    def _end(self, task: Retraining, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        if (run_id := self._begun.pop(task, None)) is not None:  # None: the store was lost before it began
            self._store.conclude(PendingResult(run_id, status, tags={"reason": reason}))

    def _key(self, task: Retraining) -> str:
        """Equal for equal work."""
        candidate, plan = task.candidate, self._plan
        configuration = {"spec": candidate.spec.to_dict(), "recipe": candidate.recipe.to_dict()}
        return identity(device=plan.device, replicate=task.replicate, **configuration, **plan.facts()).key
