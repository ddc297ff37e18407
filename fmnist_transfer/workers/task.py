"""The vocabulary of workers: a task, its outcome, an attempt at it, and what an engine must offer."""

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from fmnist_transfer.errors import Interrupted

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[Any], None]
# (shared, task, report, should_stop) -> result; must be importable by name in a worker.
TaskFunction = Callable[[Any, Any, Report, Callable[[], bool]], Any]
Engine = Literal["local", "ray"]

POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task ended.

    `result` is there if and only if `status` is `done`; else `reason` says why. `lost`: its worker died;
    `Workers` retries such a task once, and yields its last outcome only.
    """

    task: Task
    status: Literal["done", "failed", "interrupted", "lost"]
    result: Result | None = None
    reason: str = ""
    details: str = ""
    """Traceback of an unexpected failure."""


@dataclass(frozen=True)
class Job:
    """What all tasks of a `Workers.run` share."""

    function: TaskFunction
    shared: Any
    on_report: Callable[[Any, Any], None]


class Worker(Protocol):
    """A process that runs one task at a time; `task` is None while it is idle."""

    task: Any
    has_worked: bool
    """Whether it has ever begun a task."""

    def hand_out(self, job: Job, task: Any) -> None:
        """Start the task."""

    def cancel(self) -> None:
        """Tell the running task, and no other, to stop."""

    def receive(self, job: Job) -> Outcome[Any, Any] | None:
        """The outcome of the task, or None after a mere report. A dead worker keeps its task."""


class Pool(Protocol):
    """The workers of an engine."""

    def idle(self) -> Sequence[Worker]:
        """Those that a task can be handed to; none, perhaps, while they start."""

    def wait(self, busy: Sequence[Worker]) -> Iterable[Worker]:
        """Those of the busy ones that have something to `receive`, after a while at the latest."""

    def remove(self, worker: Worker) -> None:
        """It died."""

    def stop_tasks(self) -> None:
        """Tell running tasks that they are to stop."""

    def close(self) -> None:
        """End all of them at once."""


def attempt(
    function: TaskFunction, shared: Any, task: Any, report: Report, should_stop: Callable[[], bool]
) -> Outcome[Any, Any]:
    """Run the task in this process."""
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except Exception as error:  # one task's failure is its own; the caller sees the reason
        reason = f"{type(error).__name__}: {error}"
        outcome = Outcome[Any, Any](task, "failed", reason=reason, details=traceback.format_exc())
    from fmnist_transfer.training.device import free_memory

    free_memory()  # now that the error's frames are gone
    return outcome


def died(task: Any, cause: str) -> Outcome[Any, Any]:
    """The outcome of a task whose worker died."""
    return Outcome(task, "lost", reason=f"the worker process died ({cause})")
