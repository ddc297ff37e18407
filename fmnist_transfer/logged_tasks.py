"""Run tasks on workers and log each as it ends. Only this process writes to the store.

If the store is lost, running tasks are stopped and their results dropped; the same command trains them again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fmnist_transfer.data.examples import Half
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.model_format import WEIGHTS_FILE, pack_weights
from fmnist_transfer.store.open_runs import Key, OpenRuns
from fmnist_transfer.store.roles import SECONDS, TEST_ACCURACY, VAL_ACCURACY, Role, result_rows
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.device import numerics
from fmnist_transfer.training.score import Epoch, Result
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from fmnist_transfer.workers.task import Outcome, TaskFunction

Task = TypeVar("Task")
Task_contra = TypeVar("Task_contra", contravariant=True)
WORK_KEY = "work_key"  # tag: equal for trainings with equal settings


class TaskLog(Protocol[Task_contra]):
    def name(self, task: Task_contra) -> str: ...

    def begin(self, task: Task_contra) -> None: ...

    def report(self, task: Task_contra, news: Any) -> tuple[float, str]:
        """Return the finished share of the task, in [0, 1], and a note for the progress."""

    def end(self, outcome: Outcome[Any, Any]) -> str | None:
        """Log the outcome. Returns a note for the progress; None if a later command must do the task again."""

    def close(self) -> None: ...


def run_logged(
    workers: Workers,
    function: TaskFunction,
    shared: Any,
    tasks: Iterable[Task],
    *,
    log: TaskLog[Task],
    progress: Progress,
    debug: bool = False,
) -> None:
    """Run `function(shared, task, report, should_stop)` for each task. Raises StoreError if the store is lost.

    After a signal, return as soon as the running tasks have ended. With `debug`, print tracebacks of failed tasks.
    """
    outage = Outage(workers.stop)

    def guarded() -> Iterator[Task]:
        with outage.held():
            yield from tasks

    @outage.held()
    def report(task: Task, news: Any) -> None:
        progress.working(task, *log.report(task, news))

    def lost(task: Task, reason: str) -> None:
        say(f"{log.name(task)}: {reason}; retrying it once")

    begin, end = outage.held()(log.begin), outage.held()(log.end)
    try:
        for outcome in workers.run(function, shared, guarded(), on_start=begin, on_report=report, on_lost=lost):
            if (note := end(outcome)) is None:
                progress.abandoned(outcome.task)
            else:
                progress.finished(outcome.task, note)
            if outcome.status == "failed":
                say(f"{log.name(outcome.task)} failed: {outcome.reason}")
                if debug and outcome.details:
                    say(outcome.details)
    finally:
        with outage.held():
            log.close()
    outage.raise_if_any()


class Training(NamedTuple):
    """A task described as a run."""

    name: str
    params: dict[str, Any]
    key: str  # the tag `work_key`
    epochs: int


class Trained(NamedTuple):
    run_id: str
    val_accuracy: float
    test_accuracy: float
    seconds: float


class TrainedNetworks(Generic[Key]):
    """A `TaskLog` for the networks of one role below a parent run, whose lock the caller holds."""

    def __init__(
        self, store: Store, experiment: str, parent: str, role: Role, *, half: Half, training: Callable[[Key], Training]
    ):
        self._runs = OpenRuns[Key](store, experiment, parent, role, half=half, half_role="source")
        self._training = training
        self._trained: dict[str, Trained] = {}
        children = store.find(experiment, role=role, parent=parent)
        self._runs.end_left(children)
        for run in children:
            if run.info.status == "FINISHED":
                scores = (run.data.metrics[key] for key in (VAL_ACCURACY, TEST_ACCURACY, SECONDS))
                self._trained[run.data.tags.get(WORK_KEY, "")] = Trained(str(run.info.run_id), *scores)

    def trained(self, task: Key) -> Trained | None:
        """The task's result from this command or an earlier one; None if not trained yet."""
        return self._trained.get(self._training(task).key)

    def name(self, task: Key) -> str:
        return self._training(task).name

    def begin(self, task: Key) -> None:
        training = self._training(task)
        self._runs.begin(task, training.name, training.params, {WORK_KEY: training.key})

    def report(self, task: Key, news: Epoch) -> tuple[float, str]:
        training = self._training(task)
        note = f"{training.name}: epoch {news.epoch}/{training.epochs}, {news.val_accuracy:.2%}"
        return news.epoch / training.epochs, note

    def end(self, outcome: Outcome[Key, Result]) -> str | None:
        """Log the result with its weights (for `load_weights`), or the failure, or the interruption."""
        task, result = outcome.task, outcome.result
        if outcome.status == "interrupted":
            self._runs.kill(task, outcome.reason)
            return None
        if result is None:
            self._runs.fail(task, outcome.reason, outcome.details)
            return ""
        tags = {"weights_digest": weights_digest(result.final_state)} | numerics()
        files = {WEIGHTS_FILE: pack_weights(result.final_state)}
        if run_id := self._runs.end(task, "FINISHED", metrics=result_rows(result), tags=tags, files=files):
            accuracies = result.final.val.accuracy, result.test.accuracy
            self._trained[self._training(task).key] = Trained(run_id, *accuracies, result.seconds)
        return ""

    def close(self) -> None:
        self._runs.kill_rest()
