"""Types of workers: outcome, job, and the interface of an engine; and `attempt`, which runs a task."""

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
    """The end of a task. `result` is set only if `status` is `done`; otherwise `reason` says why."""

    task: Task
    status: Literal["done", "failed", "interrupted"]
    result: Result | None = None
    reason: str = ""
    details: str = ""
    """Traceback of an unexpected failure."""


@dataclass(frozen=True)
class Job:
    """Function, shared data and handlers of one `Workers.run`. Engines use the first two."""

    function: TaskFunction
    shared: Any
    on_report: Callable[[Any, Any], None]
    on_lost: Callable[[Any, str], None]


class Worker(Protocol):
    """A process that runs one task at a time. `Workers` sets the fields, an engine implements the methods."""

    task: Any = None
    """None while the worker is idle."""
    is_at_work: bool = False
    """True once the worker has begun its present task."""
    has_worked: bool = False
    """True once the worker has begun any task."""
    is_cancelled: bool = False
    """True if its present task is to stop."""

    def send(self, job: Job, task: Any) -> None:
        """Send the task to the worker, which begins it."""

    def cancel(self) -> None:
        """Tell the running task to stop; later tasks are unaffected."""

    def message(self) -> tuple[str, Any]:
        """Receive ("begun", None), ("report", news), ("outcome", outcome) or, from a dead worker, ("died", cause)."""


class Pool(Protocol):
    """The workers of an engine."""

    workers: list[Any]

    def idle(self) -> Sequence[Worker]:
        """Return workers that can take a task, perhaps none while they start; replace those that died."""

    def wait(self, busy: Sequence[Any]) -> Iterable[Worker]:
        """Wait up to about `POLL_SECONDS`; return the busy workers that have a message."""

    def stop_tasks(self) -> None:
        """Tell running tasks to stop."""

    def close(self) -> None:
        """End all workers at once."""


def attempt(
    function: TaskFunction, shared: Any, task: Any, report: Report, should_stop: Callable[[], bool]
) -> Outcome[Any, Any]:
    """Run the task in this process. Exceptions become outcomes: Interrupted `interrupted`, all others `failed`."""
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except Exception as error:  # one failed task must not stop the others
        reason = f"{type(error).__name__}: {error}"
        outcome = Outcome[Any, Any](task, "failed", reason=reason, details=traceback.format_exc())
    from fmnist_transfer.training.device import free_memory

    free_memory()  # after the except block, so that the error's frames no longer hold tensors
    return outcome
