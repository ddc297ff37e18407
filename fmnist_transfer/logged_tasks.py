"""Run tasks on workers, and log each as it ends: the one loop of trials, re-trainings, source networks and cells.

This process alone talks to the store. If the store is lost, running tasks end in good order and their results are
dropped: the same command trains them again, with equal weights.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from fmnist_transfer.workers.task import Outcome, TaskFunction

Task = TypeVar("Task")
Task_contra = TypeVar("Task_contra", contravariant=True)


class TaskLog(Protocol[Task_contra]):
    """What the loop asks of the kind of task."""

    def name(self, task: Task_contra) -> str:
        """The task in a few words."""

    def begin(self, task: Task_contra) -> None:
        """A worker starts the task."""

    def report(self, task: Task_contra, news: Any) -> tuple[float, str]:
        """The task reports. Returns the share of it that is done, in [0, 1], and a note for the progress."""

    def end(self, outcome: Outcome[Any, Any]) -> str | None:
        """Log how the task ended. Returns a note for the progress; None if the task is to be done again."""

    def close(self) -> None:
        """End what is still open."""


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

    After a signal it returns when the running tasks have ended.

    Args:
        debug: show the tracebacks of tasks that failed.
    """
    outage = Outage(workers.stop)

    def guarded() -> Iterator[Task]:
        with outage.held():
            yield from tasks

    def begin(task: Task) -> None:
        with outage.held():
            log.begin(task)

    def report(task: Task, news: Any) -> None:
        with outage.held():
            progress.working(task, *log.report(task, news))

    def lost(task: Task, reason: str) -> None:
        say(f"{log.name(task)}: {reason}; once more")

    try:
        for outcome in workers.run(function, shared, guarded(), on_start=begin, on_report=report, on_lost=lost):
            note = None
            with outage.held():
                note = log.end(outcome)
            if note is None:
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
