"""Re-trainings as MLflow runs, with their weights: what was trained once is found when it is asked for again."""

from typing import NamedTuple

from fmnist_transfer.identity import identity
from fmnist_transfer.store.metric_rows import settings_params
from fmnist_transfer.store.model_format import finish_with_weights
from fmnist_transfer.store.open_runs import OpenRuns
from fmnist_transfer.store.roles import SECONDS, TEST_ACCURACY, TUNING, VAL_ACCURACY, Role
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.score import Epoch, Result
from fmnist_transfer.workers.task import Outcome
from tuning.winner.plan import Retraining, RetrainingPlan


class Trained(NamedTuple):
    """A finished re-training, as its run has it."""

    run_id: str
    val_accuracy: float
    test_accuracy: float
    seconds: float


class RetrainingLog:
    """The re-trainings of one search, as `run_logged` wants a log of tasks.

    The caller owns the search, so whatever is RUNNING at the start was left by a dead process.
    """

    def __init__(self, store: Store, parent: str, plan: RetrainingPlan):
        self._plan = plan
        self._runs = OpenRuns[Retraining](store, TUNING, parent, Role.RETRAINED, half=plan.half, half_role="source")
        self._trained: dict[str, Trained] = {}
        for run in store.find(TUNING, role=Role.RETRAINED, parent=parent):
            if run.info.status == "RUNNING":
                store.end(run.info.run_id, "KILLED")
            elif run.info.status == "FINISHED":
                scores = (run.data.metrics[key] for key in (VAL_ACCURACY, TEST_ACCURACY, SECONDS))
                self._trained[run.data.tags.get("retraining_key", "")] = Trained(str(run.info.run_id), *scores)

    def trained(self, task: Retraining) -> Trained | None:
        """What the task gave, by this command or an earlier one."""
        return self._trained.get(self._key(task))

    def name(self, task: Retraining) -> str:
        return task.name

    def begin(self, task: Retraining) -> None:
        params = settings_params(task.candidate.spec, task.candidate.recipe) | self._plan.facts()
        params |= {"replicate": task.replicate, "device": self._plan.device}
        self._runs.begin(task, task.name, params, {"retraining_key": self._key(task)})

    def report(self, task: Retraining, news: Epoch) -> tuple[float, str]:
        epochs = task.candidate.recipe.epochs
        return news.epoch / epochs, f"{task.name}: epoch {news.epoch}/{epochs}, {news.val_accuracy:.2%}"

    def end(self, outcome: Outcome[Retraining, Result]) -> str | None:
        """Log the result with its weights, the failure, or that the task is to be done again."""
        task, result = outcome.task, outcome.result
        if outcome.status == "interrupted":
            self._runs.kill(task, outcome.reason)
            return None
        if result is None:
            self._runs.fail(task, outcome.reason, outcome.details)
        elif run_id := finish_with_weights(self._runs, task, result):
            accuracies = result.final.val.accuracy, result.test.accuracy
            self._trained[self._key(task)] = Trained(run_id, *accuracies, result.seconds)
        return ""

    def close(self) -> None:
        self._runs.kill_rest()

    def _key(self, task: Retraining) -> str:
        """Equal for equal work."""
        candidate, plan = task.candidate, self._plan
        configuration = {"spec": candidate.spec.to_dict(), "recipe": candidate.recipe.to_dict()}
        return identity(device=plan.device, replicate=task.replicate, **configuration, **plan.facts()).key
