"""Run many independent tasks: in this process, or on local worker processes of one torch thread each.

    with StopSignal() as stop:
        for outcome in run_tasks(train_cell, shared, cells, n_workers=2, stop=stop, on_report=show):
            ...

A worker lives as long as there are tasks, imports torch once, and receives `shared` once; tensors moved to shared
memory are not copied. A worker that dies takes only its own task with it.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar, cast

from fmnist_transfer.errors import Interrupted, UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[Any], None]
# (shared, task, report, should_stop) -> result; must be importable by name in a worker.
TaskFunction = Callable[[Any, Any, Report, Callable[[], bool]], Any]

POLL_SECONDS = 0.25
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task ended. `result` is there if and only if `status` is `done`; else `reason` says why."""

    task: Task
    status: Literal["done", "failed", "interrupted"]
    result: Result | None = None
    reason: str = ""
    details: str = ""
    """Traceback of an unexpected failure."""


class StopSignal:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that tasks ask for before each batch.

    The second signal leaves at once. A context manager: handlers are restored on exit.
    """

    def __init__(self) -> None:
        # A plain byte: the handler of a signal must take no lock, and a killed worker must leave none taken.
        self.flag = multiprocessing.get_context("spawn").RawValue("b", 0)
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self.flag.value = 1
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after the current batches; once more to leave at once\n")

    def is_set(self) -> bool:
        return bool(self.flag.value)

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted, with the signal's exit status, if a signal came."""
        if self.number is not None:
            raise Interrupted(message, self.number)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_workers(text: str) -> int:
    """`auto` is one per core that this process may use. Raises UsageError."""
    if text == "auto":
        return available_cores()
    if not text.isdecimal() or not 1 <= int(text) <= 1_024:
        raise UsageError(f"--workers {text}: must be auto or a number from 1 to 1024")
    return int(text)


def run_tasks(
    function: TaskFunction,
    shared: Any,
    tasks: Iterable[Task],
    *,
    n_workers: int,
    stop: StopSignal,
    on_report: Callable[[Task, Any], None] = lambda task, report: None,
    on_start: Callable[[Task], None] = lambda task: None,
) -> Iterator[Outcome[Task, Any]]:
    """Yield the outcome of each task as it finishes.

    Args:
        function: called as function(shared, task, report, should_stop).
        tasks: taken one at a time, when a worker is free; so it may depend on earlier outcomes.
        on_report: receives what a running task passes to `report`, in this process.
        on_start: called in this process when a task is handed out.

    After a signal no further task is started; the running ones end as `interrupted`.
    """
    job = _Job(function, shared, stop, on_report, on_start)
    if n_workers == 1:
        yield from _run_here(job, iter(tasks))
    else:
        yield from _run_on_processes(job, iter(tasks), n_workers)


@dataclass(frozen=True)
class _Job:
    """What all tasks of a `run_tasks` share."""

    function: TaskFunction
    shared: Any
    stop: StopSignal
    on_report: Callable[[Any, Any], None]
    on_start: Callable[[Any], None]


def _run_here(job: _Job, tasks: Iterator[Task]) -> Iterator[Outcome[Task, Any]]:
    from fmnist_transfer.training import prepare_process

    prepare_process()
    should_stop = job.stop.is_set
    while not should_stop() and (task := next(tasks, None)) is not None:
        job.on_start(task)
        yield _attempt(job.function, job.shared, task, functools.partial(job.on_report, task), should_stop)


def _attempt(
    function: TaskFunction, shared: Any, task: Task, report: Report, should_stop: Callable[[], bool]
) -> Outcome[Task, Any]:
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except Exception as error:  # one task's failure is its own; the caller sees the reason
        return Outcome(task, "failed", reason=f"{type(error).__name__}: {error}", details=traceback.format_exc())


class _Worker:
    """A process and our end of its pipe; `task` is what it works on, None while it is idle."""

    def __init__(self, job: _Job):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: Any = None
        self.process = context.Process(
            target=_work, args=(job.function, job.shared, theirs, job.stop.flag), daemon=True
        )
        # A worker inherits the mask: Ctrl-C reaches it too, perhaps before it can say that the parent decides.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()  # so that its death is the end of the pipe

    def hand_out(self, task: Any) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it died while idle, which `receive` finds
            self.connection.send(task)

    def receive(self, job: _Job) -> Outcome[Any, Any] | None:
        """The outcome of the task, or None after a mere report. A dead worker's task has failed."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # also in the midst of a message
            self.process.join()
            return Outcome(
                self.task, "failed", reason=f"the worker process died ({_death(self.process.exitcode or 0)})"
            )
        if kind == "report":
            job.on_report(self.task, content)
            return None
        self.task = None
        return content

    def leave(self) -> None:
        self.connection.close()  # an idle worker then leaves by itself
        self.process.join(5)
        self.process.kill()


def _run_on_processes(job: _Job, tasks: Iterator[Task], n_workers: int) -> Iterator[Outcome[Task, Any]]:
    workers: list[_Worker] = []
    try:
        while True:
            idle = [worker for worker in workers if worker.task is None]
            while (idle or len(workers) < n_workers) and not job.stop.is_set():
                if (task := next(tasks, None)) is None:
                    break
                if not idle:
                    workers.append(_Worker(job))
                    idle = workers[-1:]
                job.on_start(task)
                idle.pop().hand_out(task)
            busy = {worker.connection: worker for worker in workers if worker.task is not None}
            if not busy:
                return
            for connection in wait(list(busy), POLL_SECONDS):
                worker = busy[cast(Any, connection)]
                if (outcome := worker.receive(job)) is not None:
                    if worker.task is not None:  # it died
                        workers.remove(worker)
                    yield outcome
    finally:
        for worker in workers:
            worker.leave()


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"signal {-exit_code}" + (", perhaps for want of memory" if exit_code == -signal.SIGKILL else "")


def _work(function: TaskFunction, shared: Any, connection: Connection, stop_flag: Any) -> None:
    """Main function of a worker: tasks in, reports and outcomes out, until the pipe closes or the parent is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from fmnist_transfer.training import prepare_process

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
            outcome = _attempt(function, shared, connection.recv(), report, should_stop)
            connection.send(("outcome", outcome))
