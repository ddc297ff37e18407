"""Outcome of a task, interface of an engine, and `attempt`, which runs a task."""

import gc
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    """The end of a task: its `result` if `done`, else the `reason`; `details` is the traceback of a failure."""

    task: Task
    status: Literal["done", "failed", "interrupted"]
    result: Result | None = None
    reason: str = ""
    details: str = ""


@dataclass(eq=False)
class Job:
    """One `Workers.run` and its state."""

    function: TaskFunction
    shared: Any
    on_report: Callable[[Any, Any], None]
    on_lost: Callable[[Any, str], None]
    lost: list[Any] = field(default_factory=list)  # tasks to be retried
    deaths: Counter[Any] = field(default_factory=Counter)  # (task, whether it had begun) -> workers that died of it
    has_begun: bool = False  # any task
    n_unused: int = 0  # dead workers in a row that never began a task
    reference: Any = None  # an engine's, to function and shared data


class Worker(Protocol):
    """A process that runs one task at a time. `Workers` sets the fields; an engine implements the methods."""

    task: Any = None  # None while idle
    is_at_work: bool = False  # the present task has begun
    has_worked: bool = False  # any task has begun
    is_cancelled: bool = False  # the present task is to stop

    def send(self, job: Job, task: Any) -> None: ...  # the worker begins the task
    def cancel(self) -> None: ...  # tell the present task to stop; later ones are unaffected
    def kill(self) -> None: ...
    def message(self) -> tuple[str, Any]:
        """Receive ("begun", None), ("report", news), ("outcome", outcome) or, from a dead worker, ("died", cause)."""


class Pool(Protocol):
    """The workers of an engine."""

    workers: list[Any]

    def idle(self) -> Sequence[Worker]:
        """Replace dead workers; return those that can take a task, perhaps none while they start."""

    def wait(self, busy: Sequence[Any]) -> Sequence[Worker]:
        """Wait up to about `POLL_SECONDS`; return the busy workers that have a message."""

    def stop_tasks(self) -> None:
        for worker in self.workers:
            worker.cancel()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


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
    import torch

    gc.collect()  # after the except block, so that the error's frames no longer hold tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return outcome
