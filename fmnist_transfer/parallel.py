"""Run many independent tasks: in this process, or on local worker processes of one torch thread each.

    with StopSignal() as stop, Workers(2, stop) as workers:
        for outcome in workers.run(square, shared, numbers, on_report=show):
            ...

A worker lives as long as the `with` block: it imports torch once, while this process does something else, and receives
what the tasks of a `run` share once; tensors in shared memory are not copied. A worker that dies takes only its own
task with it, which is tried once more on another.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar, cast

from fmnist_transfer.errors import Interrupted, StoreError, UsageError
from fmnist_transfer.stopping import SIGNALS, StopSignal

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[Any], None]
# (shared, task, report, should_stop) -> result; must be importable by name in a worker.
TaskFunction = Callable[[Any, Any, Report, Callable[[], bool]], Any]

POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task, or one attempt at it, ended.

    `result` is there if and only if `status` is `done`; else `reason` says why. `lost`: its worker died, and it is
    tried again, unless the caller sees to that.
    """

    task: Task
    status: Literal["done", "failed", "interrupted", "lost"]
    result: Result | None = None
    reason: str = ""
    details: str = ""
    """Traceback of an unexpected failure."""
    outage: StoreError | None = None
    """Of an interrupted task that lost its store."""


def available_cores() -> int:
    """Cores that this process may use: affinity and the limits of control groups count."""
    import joblib

    return int(joblib.cpu_count())


def parse_workers(text: str) -> int | None:
    """A number, or None for `auto`. Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1_024:
        raise UsageError(f"--workers {text}: must be auto or a number from 1 to 1024")
    return int(text)


def count_workers(text: str, device: str, n_tasks: int) -> int:
    """Workers for `--workers`, no more than there are tasks; `auto`: one per core, or one for an accelerator."""
    asked = parse_workers(text) or (available_cores() if device == "cpu" else 1)
    return max(1, min(asked, n_tasks))


class Workers:
    """`n` processes that run tasks until the `with` block ends. One worker is this process itself, unless `apart`.

    Args:
        apart: run tasks in other processes, even one at a time.
        prepare: whether those are prepared for training (`training.prepare_process`) or left as torch comes.
    """

    def __init__(self, n: int, stop: StopSignal, *, apart: bool = False, prepare: bool = True):
        self._n, self.stop, self._prepare = n, stop, prepare
        self._apart = apart or n > 1
        self._processes: list[_Process] = []

    def __enter__(self) -> "Workers":
        if self._apart:
            self._processes = [_Process(self.stop, self._prepare) for _ in range(self._n)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.leave()
        for process in self._processes:
            process.wait()

    def run(
        self,
        function: TaskFunction,
        shared: Any,
        tasks: Iterable[Task],
        *,
        on_report: Callable[[Task, Any], None] = lambda task, report: None,
        on_start: Callable[[Task], None] = lambda task: None,
        retry_lost: bool = True,
    ) -> Iterator[Outcome[Task, Any]]:
        """Yield the outcome of each task as it finishes.

        Args:
            function: called as function(shared, task, report, should_stop).
            tasks: taken one at a time, when a worker is free; so it may depend on earlier outcomes.
            on_report: receives what a running task passes to `report`, in this process.
            on_start: called in this process when a task is handed out; after a `lost` outcome, once more.
            retry_lost: whether a task whose worker died is tried once more, on another.

        After a signal no further task is started; the running ones end as `interrupted`.
        """
        job = _Job(function, shared, on_report, on_start, retry_lost)
        if self._apart:
            yield from self._run_on_processes(job, iter(tasks))
        else:
            yield from self._run_here(job, iter(tasks))

    def _run_here(self, job: "_Job", tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        from fmnist_transfer.training import prepare_process

        prepare_process()
        should_stop = self.stop.is_set
        while not should_stop() and (task := next(tasks, None)) is not None:
            job.on_start(task)
            yield _attempt(job.function, job.shared, task, functools.partial(job.on_report, task), should_stop)

    def _run_on_processes(self, job: "_Job", tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        lost: list[Any] = []
        while True:
            for process in self._processes:
                if process.task is None and not self.stop.is_set():
                    again = bool(lost)
                    if (task := lost.pop() if lost else next(tasks, None)) is None:
                        break
                    job.on_start(task)
                    process.hand_out(job, task, again=again)
            busy = {process.connection: process for process in self._processes if process.task is not None}
            if not busy:
                return
            for connection in wait(list(busy), POLL_SECONDS):
                process = busy[cast(Any, connection)]
                if (outcome := process.receive(job)) is None:
                    continue
                if process.task is not None:  # it died
                    self._processes[self._processes.index(process)] = _Process(self.stop, self._prepare)
                    if outcome.status == "lost" and job.retry_lost:
                        lost.append(outcome.task)
                yield outcome


@dataclass(frozen=True)
class _Job:
    """What all tasks of a `Workers.run` share."""

    function: TaskFunction
    shared: Any
    on_report: Callable[[Any, Any], None]
    on_start: Callable[[Any], None]
    retry_lost: bool


def _attempt(
    function: TaskFunction, shared: Any, task: Any, report: Report, should_stop: Callable[[], bool]
) -> Outcome[Any, Any]:
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except StoreError as error:  # without its store a task has not failed: it is still to be done
        return Outcome(task, "interrupted", reason=str(error), outage=error)
    except Exception as error:  # one task's failure is its own; the caller sees the reason
        outcome = Outcome[Any, Any](
            task, "failed", reason=f"{type(error).__name__}: {error}", details=traceback.format_exc()
        )
    from fmnist_transfer.training import free_memory

    free_memory()  # now that the error's frames are gone
    return outcome


class _Process:
    """A worker and our end of its pipe; `task` is what it works on, None while it is idle."""

    def __init__(self, stop: StopSignal, prepare: bool):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: Any = None
        self._again = False  # whether another worker died of it
        self._job: _Job | None = None  # what it knows of
        self._process = context.Process(target=_work, args=(theirs, stop.flag, prepare), daemon=True)
        # A worker inherits the mask: Ctrl-C reaches it too, perhaps before it can say that the parent decides.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()  # so that its death is the end of the pipe

    def hand_out(self, job: _Job, task: Any, *, again: bool) -> None:
        self.task, self._again = task, again
        with contextlib.suppress(OSError):  # it died while idle, which `receive` finds
            if self._job is not job:
                self.connection.send(("job", job.function, job.shared))
                self._job = job
            self.connection.send(("task", task))

    def receive(self, job: _Job) -> Outcome[Any, Any] | None:
        """The outcome of the task, or None after a mere report. A dead worker's task is lost, or at last has failed."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # also in the midst of a message
            self._process.kill()  # if it is the pipe that failed
            self._process.join()
            reason = f"the worker process died ({_death(self._process.exitcode or 0)})"
            if self._again:
                return Outcome(self.task, "failed", reason=f"{reason}, twice")
            return Outcome(self.task, "lost", reason=reason)
        if kind == "report":
            job.on_report(self.task, content)
            return None
        self.task = None
        return cast(Outcome[Any, Any], content)

    def leave(self) -> None:
        """End it at once: it is idle, or something went wrong."""
        self.connection.close()
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"signal {-exit_code}" + (", perhaps for want of memory" if exit_code == -signal.SIGKILL else "")


def _work(connection: Connection, stop_flag: Any, prepare: bool) -> None:
    """Main function of a worker: jobs and tasks in, reports and outcomes out, until the pipe closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from fmnist_transfer.training import prepare_process

    if prepare:
        prepare_process()
    parent = multiprocessing.parent_process()

    def should_stop() -> bool:
        return bool(stop_flag.value) or (parent is not None and os.getppid() != parent.pid)

    def report(news: Any) -> None:
        try:
            connection.send(("report", news))
        except OSError as error:
            raise Interrupted("the parent process is gone") from error

    with contextlib.suppress(EOFError, OSError):
        while True:
            match connection.recv():
                case ("job", function, shared):
                    pass
                case ("task", task):
                    if should_stop():  # as an orphan, say, which is to begin nothing any more
                        outcome = Outcome[Any, Any](task, "interrupted", reason="it was not begun")
                    else:
                        outcome = _attempt(function, shared, task, report, should_stop)
                    # By value: sent otherwise, each tensor of a result would hold a file descriptor of the parent.
                    connection.send_bytes(pickle.dumps(("outcome", outcome)))
