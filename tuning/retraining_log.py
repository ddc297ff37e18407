"""Re-trainings as MLflow runs, with their weights: what was trained once is found again when it is asked for again."""

import hashlib
import json
from typing import Literal, NamedTuple

import torch

from fmnist_transfer.registry import finished_with_weights
from fmnist_transfer.spool import Ending
from fmnist_transfer.tracking import Store, settings_params
from fmnist_transfer.training import NUMERICS_VERSION, Result
from fmnist_transfer.ui import TUNING
from tuning.retraining import Retraining, RetrainingPlan


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
        for run in store.find(TUNING, status="RUNNING", role="retrained", parent=parent):
            store.end(run.info.run_id, "KILLED")
        finished = store.find(TUNING, status="FINISHED", role="retrained", parent=parent)
        self._finished = {run.data.tags.get("retraining_key", ""): run for run in finished}
        self._begun: dict[Retraining, str] = {}

    def trained(self, task: Retraining) -> Trained | None:
        """What the task gave before."""
        if (run := self._finished.get(self._key(task))) is None:
            return None
        metrics = run.data.metrics
        return Trained(
            run.info.run_id, metrics["final/val_accuracy"], metrics["test/accuracy"], metrics["cost/seconds"]
        )

    def begin(self, task: Retraining) -> None:
        tags = {"role": "retrained", "parent": self._parent, "retraining_key": self._key(task)}
        params = settings_params(task.candidate.spec, task.candidate.recipe) | self._settings(task)
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
            self._store.conclude(Ending(run_id, status, tags={"reason": reason}))

    def _settings(self, task: Retraining) -> dict[str, str]:
        return {
            "replicate": str(task.replicate),
            "seed": str(self._plan.seed),
            "split": str(self._plan.split),
            "data_sha256": self._plan.half.data_sha256,
            "device": self._plan.device,
            "precision": self._plan.precision,
        }

    def _key(self, task: Retraining) -> str:
        """Equal for equal work."""
        candidate = task.candidate
        what = [
            *(candidate.spec.to_dict(), candidate.recipe.to_dict(), self._settings(task)),
            *(torch.__version__.split(".")[:2], NUMERICS_VERSION),
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
