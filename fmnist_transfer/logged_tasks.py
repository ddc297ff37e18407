"""Run tasks on workers and log each as it ends. Only this process writes to the store.

If the store is lost, running tasks are stopped and their results dropped; the same command trains them again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.identity import identity
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.model_format import WEIGHTS_FILE, pack_weights
from fmnist_transfer.store.roles import TEST_ACCURACY, VAL_ACCURACY, Role, result_rows, settings_params
from fmnist_transfer.store.runs import Key, OpenRuns, Run, Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.training.device import numerics
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, Result
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Outcome, TaskFunction

Task = TypeVar("Task")
Task_contra = TypeVar("Task_contra", contravariant=True)
WORK_KEY = "work_key"  # tag: equal for trainings with equal settings


class TaskLog(Protocol[Task_contra]):
    def name(self, task: Task_contra) -> str: ...
    def begin(self, task: Task_contra) -> None: ...
    def close(self) -> None: ...
    def report(self, task: Task_contra, news: Any) -> tuple[float, str]:
        """Return the finished share of the task, in [0, 1], and a note for the progress."""

    def end(self, outcome: Outcome[Any, Any]) -> str | None:
        """Log the outcome. Returns a note for the progress; None if a later command must do the task again."""


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
    stop = workers.stop

    def begun() -> Iterator[Task]:
        with stop.held():
            for task in tasks:
                log.begin(task)
                yield task

    @stop.held()
    def report(task: Task, news: Any) -> None:
        progress.working(task, *log.report(task, news))

    def lost(task: Task, reason: str) -> None:
        say(f"{log.name(task)}: {reason}; retrying it once")

    end = stop.held()(log.end)
    try:
        for outcome in workers.run(function, shared, begun(), on_report=report, on_lost=lost):
            if (note := end(outcome)) is None:
                progress.abandoned(outcome.task)
            else:
                progress.finished(outcome.task, note)
            if outcome.status == "failed":
                say(f"{log.name(outcome.task)} failed: {outcome.reason}")
                if debug and outcome.details:
                    say(outcome.details)
    finally:
        with stop.held():
            log.close()
    if stop.outage:
        raise stop.outage


@dataclass(frozen=True)
class Together(Generic[Key]):
    """A `TaskLog` for tasks that are several of `log`'s, done as one computation; it returns a result for each."""

    log: TaskLog[Key]

    def name(self, task: tuple[Key, ...]) -> str:
        return self.log.name(task[0]) + (f" and {len(task) - 1} more" if len(task) > 1 else "")

    def begin(self, task: tuple[Key, ...]) -> None:
        for part in task:
            self.log.begin(part)

    def report(self, task: tuple[Key, ...], news: Any) -> tuple[float, str]:
        return self.log.report(task[0], news)  # the parts advance together, so one name is enough

    def end(self, outcome: Outcome[tuple[Key, ...], list[Any]]) -> str | None:
        """Log each part's result; one that is an exception is a failure of this part alone."""
        notes = []
        for part, result in zip(outcome.task, outcome.result or [None] * len(outcome.task), strict=True):
            own = Outcome[Key, Any](part, outcome.status, result, outcome.reason, outcome.details)
            if isinstance(result, Exception):
                own = Outcome(part, "failed", reason=f"{type(result).__name__}: {result}")
                say(f"{self.log.name(part)} failed: {own.reason}")
            notes.append(self.log.end(own))
        return notes[0]

    def close(self) -> None:
        self.log.close()


class Training(NamedTuple):
    """A task described as a run."""

    name: str
    params: dict[str, Any]
    key: str  # the tag `work_key`
    epochs: int

    @classmethod
    def of(cls, name: str, spec: CNN2Spec, recipe: Recipe, device: str, facts: Mapping[str, Any]) -> Self:
        """Describe a training on a source half by `facts`, too. Equal ones of a search and a sweep have equal keys."""
        params = settings_params(spec, recipe) | dict(facts)
        return cls(name, params | {"device": device}, identity(device=device, **params).key, recipe.epochs)


class Trained(NamedTuple):
    run_id: str
    val_accuracy: float
    test_accuracy: float


class TrainedNetworks(Generic[Key]):
    """A `TaskLog` for the networks of one role below a parent run, whose lock the caller holds."""

    def __init__(
        self, store: Store, experiment: str, parent: str, role: Role, *, half: Half, training: Callable[[Key], Training]
    ):
        self._runs = OpenRuns[Key](store, experiment, parent, role, half=half, half_role="source")
        self._training = training
        children = store.find(experiment, role=role, parent=parent)
        self._runs.end_left(children)
        self._trained = _finished(children)

    def use(self, runs: Iterable[Run]) -> None:
        """Let finished runs of another parent count where a task has none of its own."""
        self._trained = _finished(runs) | self._trained

    def todo(self, tasks: Sequence[Key], noun: str) -> list[Key]:
        """List the tasks that are not trained yet, and say how many are."""
        todo = [task for task in tasks if self._training(task).key not in self._trained]
        if len(todo) < len(tasks):
            say(f"{len(tasks) - len(todo)} of {len(tasks)} {noun} are there already")
        return todo

    def collect(self, tasks: Sequence[Key], noun: str, stop: StopSignal) -> dict[Key, Trained]:
        """Return what is trained, by this command or an earlier one. Raises Interrupted if a signal ended the rest."""
        trained = {task: self._trained[key] for task in tasks if (key := self._training(task).key) in self._trained}
        stop.raise_if_set(f"{len(trained)} of {len(tasks)} {noun} trained; {SAME_COMMAND}")
        return trained

    def name(self, task: Key) -> str:
        return self._training(task).name

    def begin(self, task: Key) -> None:
        training = self._training(task)
        self._runs.begin(task, training.name, training.params, {WORK_KEY: training.key})

    def report(self, task: Key, news: Epoch | int) -> tuple[float, str]:
        """Report an `Epoch`, or the number of one."""
        training = self._training(task)
        number, accuracy = (news, "") if isinstance(news, int) else (news.epoch, f", {news.val_accuracy:.2%}")
        return number / training.epochs, f"{training.name}: epoch {number}/{training.epochs}{accuracy}"

    def end(self, outcome: Outcome[Key, Result]) -> str | None:
        """Log the result with its weights (for `load_weights`), or the failure, or the interruption."""
        task, result = outcome.task, outcome.result
        if outcome.status == "interrupted":
            self._runs.end(task, "KILLED", tags={"reason": outcome.reason})
            return None
        if result is None:
            self._runs.fail(task, outcome.reason, outcome.details)
            return ""
        tags = {"weights_digest": weights_digest(result.final_state)} | numerics()
        files = {WEIGHTS_FILE: pack_weights(result.final_state)}
        if run_id := self._runs.end(task, "FINISHED", metrics=result_rows(result), tags=tags, files=files):
            accuracies = result.val.accuracy, result.test.accuracy
            self._trained[self._training(task).key] = Trained(run_id, *accuracies)
        return ""

    def close(self) -> None:
        self._runs.kill_rest()


def _finished(runs: Iterable[Run]) -> dict[str, Trained]:
    """Map the work key of each finished run to its result; of equal ones the earliest counts."""
    trained = {}
    for run in sorted(runs, key=lambda run: run.info.start_time, reverse=True):
        if run.info.status == "FINISHED":
            scores = (run.data.metrics[key] for key in (VAL_ACCURACY, TEST_ACCURACY))
            trained[run.data.tags.get(WORK_KEY, "")] = Trained(str(run.info.run_id), *scores)
    return trained
