"""Worker processes on this machine, connected by pipes."""

import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from fmnist_transfer.errors import UsageError
from fmnist_transfer.workers.stop import SIGNALS
from fmnist_transfer.workers.task import POLL_SECONDS, Job, Pool, Worker, attempt

OWN_FILES, FILES_PER_WORKER = 64, 32  # with room to spare: a driver of two workers had 100 open, of four 157


class ProcessPool(Pool):
    """`n` processes. Raises the limit on open files as they need, or UsageError if that is not allowed."""

    def __init__(self, n: int, prepare: bool):
        self.workers: list[_Process] = []
        self._n, self._prepare = n, prepare
        needed = OWN_FILES + FILES_PER_WORKER * n
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            if resource.RLIM_INFINITY != soft < needed:
                resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError) as error:  # above the hard limit
            remedy = f"allow more by ulimit -n {needed}, or use fewer --workers"
            raise UsageError(f"{n} workers need {needed} open files, and {hard} are allowed: {remedy}") from error
        self.idle()

    def idle(self) -> list["_Process"]:
        while len(self.workers) < self._n:
            self.workers.append(_Process(self._prepare))
        return [worker for worker in self.workers if worker.task is None]

    def wait(self, busy: Sequence[Any]) -> list["_Process"]:
        by_connection = {worker.connection: worker for worker in busy}
        return [by_connection[ready] for ready in wait(list(by_connection), POLL_SECONDS)]

    def stop_tasks(self) -> None:
        """Cancel running tasks, and kill workers that have not begun theirs, since they may hang."""
        for worker in self.workers:
            if worker.is_at_work:
                worker.cancel()
            elif worker.task is not None:
                worker.process.kill()


class _Process(Worker):
    def __init__(self, prepare: bool):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._cancelled = context.RawValue("b", 0)  # without a lock, which a killed worker would keep
        self._job: Job | None = None  # the last job sent to it
        self.process = context.Process(target=_work, args=(theirs, os.getpid(), self._cancelled, prepare), daemon=True)
        # The worker inherits this mask: Ctrl-C reaches it too, perhaps before `_work` ignores signals.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process.start()
        except OSError as error:
            raise UsageError(f"cannot start a worker process: {error}; use fewer --workers") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()  # so that its death is the end of the pipe

    def send(self, job: Job, task: Any) -> None:
        self._cancelled.value = 0
        new_job = None if self._job is job else (job.function, job.shared)
        content = ForkingPickler.dumps((new_job, task))  # may fail, for want of open files for example
        with contextlib.suppress(OSError):  # it died while idle; `message` reports that
            self.connection.send_bytes(content)
            self._job = job

    def cancel(self) -> None:
        self._cancelled.value = 1

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()

    def message(self) -> tuple[str, Any]:
        try:
            return cast(tuple[str, Any], self.connection.recv())
        except (EOFError, OSError):  # it died, perhaps while sending
            self.kill()  # in case only the pipe failed
        status = self.process.exitcode or 0
        memory = ", perhaps out of memory" * (status == -signal.SIGKILL)
        return "died", f"exit status {status}" if status >= 0 else f"signal {-status}{memory}"


def _work(connection: Connection, parent: int, cancelled: Any, prepare: bool) -> None:
    """Receive tasks, send reports and outcomes, until the pipe closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles signals and cancels the task
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from fmnist_transfer.training.device import prepare_process

    if prepare:
        prepare_process()

    def should_stop() -> bool:
        return bool(cancelled.value) or os.getppid() != parent

    function: Any = None
    shared: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            new_job, task = connection.recv()
            function, shared = new_job or (function, shared)
            connection.send(("begun", None))
            outcome = attempt(function, shared, task, lambda news: connection.send(("report", news)), should_stop)
            # Pickled by value: else each tensor of the result would hold a file descriptor in the parent.
            connection.send_bytes(pickle.dumps(("outcome", outcome)))
