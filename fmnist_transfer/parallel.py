"""Run many independent tasks: in this process, or on local worker processes of one torch thread each.

    with StopSignal() as stop:
        for outcome in run_tasks(train_cell, shared, cells, n_workers=2, stop=stop, on_report=show):
            ...

A worker lives as long as there are tasks, imports torch once, and receives `shared` once; tensors moved to shared
memory are not copied. A worker that dies takes only its own task with it.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Literal, TypeVar

from fmnist_transfer.errors import Interrupted, UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[Any], None]
# (shared, task, report, should_stop) -> result; must be importable by name in a worker.
TaskFunction = Callable[[Any, Any, Report, Callable[[], bool]], Any]

POLL_SECONDS = 0.25


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
        self.event = multiprocessing.get_context("spawn").Event()
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self.event.set()
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after the current batches; once more to leave at once\n")

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
    if n_workers == 1:
        yield from _run_here(function, shared, tasks, stop, on_report, on_start)
    else:
        yield from _run_on_processes(function, shared, tasks, n_workers, stop, on_report, on_start)


def _run_here(function, shared, tasks, stop, on_report, on_start):  # type: ignore[no-untyped-def]
    from fmnist_transfer.training import prepare_process

    prepare_process()
    iterator = iter(tasks)
    while not stop.event.is_set() and (task := next(iterator, None)) is not None:
        on_start(task)
        yield _attempt(function, shared, task, lambda report, task=task: on_report(task, report), stop.event.is_set)


def _attempt(function: TaskFunction, shared: Any, task: Any, report: Report, should_stop: Callable[[], bool]) -> Outcome:
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except Exception as error:  # one task's failure is its own; the caller sees the reason
        return Outcome(task, "failed", reason=f"{type(error).__name__}: {error}", details=traceback.format_exc())


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Any = None


def _run_on_processes(function, shared, tasks, n_workers, stop, on_report, on_start):  # type: ignore[no-untyped-def]
    context = multiprocessing.get_context("spawn")

    def start_worker() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(function, shared, theirs, stop.event), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    iterator = iter(tasks)
    exhausted = False
    workers: list[_Worker] = []
    try:
        while True:
            while not exhausted and not stop.event.is_set():
                idle = next((worker for worker in workers if worker.task is None), None)
                if idle is None and len(workers) == n_workers:
                    break
                task = next(iterator, None)
                if task is None:
                    exhausted = True
                    break
                if idle is None:
                    workers.append(idle := start_worker())
                idle.task = task
                on_start(task)
                with contextlib.suppress(BrokenPipeError):  # died while idle: seen below as the end of its pipe
                    idle.connection.send(task)
            busy = {worker.connection: worker for worker in workers if worker.task is not None}
            if not busy:
                return
            for connection in wait(list(busy), POLL_SECONDS):
                worker = busy[connection]  # type: ignore[index]
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    yield Outcome(worker.task, "failed", reason=_death(worker.process))
                    continue
                if kind == "report":
                    on_report(worker.task, content)
                else:
                    worker.task = None
                    yield content
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker leaves by itself
        for worker in workers:
            worker.process.join(5)
            worker.process.kill()


def _death(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    how = f"signal {-code}" + (", out of memory?" if code == -signal.SIGKILL else "") if code < 0 else f"status {code}"
    return f"the worker process died ({how})"


def _work(function: TaskFunction, shared: Any, connection: Connection, stop_event: Any) -> None:
    """Main function of a worker: tasks in, reports and outcomes out, until the pipe closes or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    from fmnist_transfer.training import prepare_process

    prepare_process()
    parent = os.getppid()

    def should_stop() -> bool:
        return stop_event.is_set() or os.getppid() != parent

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            outcome = _attempt(function, shared, task, lambda report: connection.send(("report", report)), should_stop)
            connection.send(("outcome", outcome))
