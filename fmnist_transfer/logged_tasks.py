"""Run tasks on workers and log each as it ends: trials, re-trainings, source networks and cells.

Only this process writes to the store. If the store is lost, running tasks are stopped and their results dropped; the
same command trains them again, with equal weights.
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
    """Log of one kind of task."""

    def name(self, task: Task_contra) -> str: ...

    def begin(self, task: Task_contra) -> None: ...

    def report(self, task: Task_contra, news: Any) -> tuple[float, str]:
        """Return the finished share of the task, in [0, 1], and a note for the progress."""

    def end(self, outcome: Outcome[Any, Any]) -> str | None:
        """Log the outcome. Returns a note for the progress; None if a later command must do the task again."""

    def close(self) -> None:
        """End all open runs."""


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

    def begin(task: Task) -> None:
        with outage.held():
            log.begin(task)

    def report(task: Task, news: Any) -> None:
        with outage.held():
            progress.working(task, *log.report(task, news))

    def lost(task: Task, reason: str) -> None:
        say(f"{log.name(task)}: {reason}; retrying it once")

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
