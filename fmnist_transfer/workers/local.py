"""Worker processes on this machine, one torch thread each.

They start before this process imports torch, so that all import it in parallel. Tensors are shared, not copied.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from fmnist_transfer.errors import Interrupted, UsageError
from fmnist_transfer.workers.stop import SIGNALS, StopSignal
from fmnist_transfer.workers.task import POLL_SECONDS, Job, Outcome, Worker, attempt, died


class ProcessPool:
    """`n` worker processes; a dead one is replaced."""

    def __init__(self, n: int, stop: StopSignal, prepare: bool):
        self._stop, self._prepare = stop, prepare
        self._workers = [_Process(stop, prepare) for _ in range(n)]

    def idle(self) -> list["_Process"]:
        return [worker for worker in self._workers if worker.task is None]

    def wait(self, busy: Sequence[Worker]) -> list["_Process"]:
        by_connection = {process.connection: process for process in cast(Sequence[_Process], busy)}
        return [by_connection[cast(Any, ready)] for ready in wait(list(by_connection), POLL_SECONDS)]

    def remove(self, worker: Worker) -> None:
        self._workers.remove(cast(_Process, worker))
        if not self._stop.is_set():
            self._workers.append(_Process(self._stop, self._prepare))

    def stop_tasks(self) -> None:
        """Kill workers that have a task but have not begun it, since they may hang. Running tasks see the stop flag."""
        for process in self._workers:
            if process.task is not None and not process.is_at_work:
                process.kill()

    def close(self) -> None:
        for process in self._workers:
            process.leave()
        for process in self._workers:
            process.wait()


class _Process:
    """A worker process and the parent's end of its pipe."""

    def __init__(self, stop: StopSignal, prepare: bool):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: Any = None
        self.is_at_work = self.has_worked = False
        self._cancelled = context.RawValue("b", 0)
        self._job: Job | None = None  # the last job sent to it
        self._process = context.Process(target=_work, args=(theirs, stop.flag, self._cancelled, prepare), daemon=True)
        # The worker inherits this mask: Ctrl-C reaches it too, perhaps before `_work` ignores signals.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        except OSError as error:
            raise UsageError(f"cannot start a worker process: {error}; use fewer --workers") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()  # so that its death is the end of the pipe

    def hand_out(self, job: Job, task: Any) -> None:
        self.task, self.is_at_work = task, False
        self._cancelled.value = 0
        with contextlib.suppress(OSError):  # it died while idle; `receive` reports that
            if self._job is not job:
                self.connection.send(("job", job.function, job.shared))
                self._job = job
            self.connection.send(("task", task))

    def cancel(self) -> None:
        self._cancelled.value = 1

    def kill(self) -> None:
        self._process.kill()

    def receive(self, job: Job) -> Outcome[Any, Any] | None:
        """The task's outcome (`lost` if the worker died), or None if the message was not an outcome."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # it died, perhaps while sending
            self.leave()  # in case only the pipe failed
            self.wait()
            return died(self.task, _death(self._process.exitcode or 0))
        if kind == "begun":
            self.is_at_work = self.has_worked = True
            return None
        if kind == "report":
            job.on_report(self.task, content)
            return None
        self.task = None
        return cast(Outcome[Any, Any], content)

    def leave(self) -> None:
        """Kill the process, which is idle or has failed."""
        self.connection.close()
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"signal {-exit_code}" + (", perhaps out of memory" if exit_code == -signal.SIGKILL else "")


def _work(connection: Connection, stop_flag: Any, cancelled: Any, prepare: bool) -> None:
    """Main function of a worker: receive jobs and tasks, send reports and outcomes, until the pipe closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles signals and sets `stop_flag`
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from fmnist_transfer.training.device import prepare_process

    if prepare:
        prepare_process()
    parent = multiprocessing.parent_process()

    def should_stop() -> bool:
        return bool(stop_flag.value or cancelled.value) or (parent is not None and os.getppid() != parent.pid)

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
                    connection.send(("begun", None))
                    if should_stop():  # for example, the parent has died
                        outcome = Outcome[Any, Any](task, "interrupted", reason="stopped before it began")
                    else:
                        outcome = attempt(function, shared, task, report, should_stop)
                    # Pickled by value: else each tensor of the result would hold a file descriptor in the parent.
                    connection.send_bytes(pickle.dumps(("outcome", outcome)))
