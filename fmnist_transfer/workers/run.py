"""Run many independent tasks: in this process, on worker processes of this machine, or on a Ray cluster.

    with StopSignal() as stop, Workers(2, stop) as workers:
        for outcome in workers.run(square, shared, numbers, on_report=show):
            ...

A worker lives as long as the `with` block, imports torch once, and receives the shared data of a `run` once. If a
worker dies, only its task is lost. The task is retried once on another worker, and again if a worker died before it
began the task; engines must not retry on their own.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from fmnist_transfer.errors import UsageError
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Engine, Job, Outcome, Pool, Task, TaskFunction, Worker, attempt

MOST_UNUSED = 3  # dead workers in a row that never began a task, after which `run` gives up


class CanShareMemory(Protocol):
    """Data whose tensors can be moved to shared memory."""

    def share_memory(self) -> Any: ...


Shared = TypeVar("Shared", bound=CanShareMemory)


class Workers:
    """`n` processes that run tasks until the `with` block ends. A single worker is this process itself, unless `apart`.

    Args:
        n: number of processes; on a cluster an upper limit.
        apart: run tasks in other processes even if n = 1.
        prepare: whether to prepare local worker processes for training (`device.prepare_process`).
        engine: `local`, or `ray` for the actors of a Ray cluster.
        gpus_per_task: GPUs per Ray actor.
    """

    def __init__(
        self,
        n: int,
        stop: StopSignal,
        *,
        apart: bool = False,
        prepare: bool = True,
        engine: Engine = "local",
        gpus_per_task: float = 0.0,
    ):
        self.n, self.stop, self._prepare, self._gpus_per_task = n, stop, prepare, gpus_per_task
        self.engine = engine
        self._apart = apart or n > 1 or engine != "local"
        self._pool: Pool | None = None
        self._busy: list[Worker] = []
        self._cancelled: list[Any] = []  # running tasks
        self._n_unused = 0  # dead workers in a row that never began a task

    def __enter__(self) -> "Workers":
        if self.engine == "ray":
            from fmnist_transfer.workers.ray_pool import RayPool

            self._pool = RayPool(self.n, self._gpus_per_task)
        elif self._apart:
            from fmnist_transfer.workers.local import ProcessPool

            self._pool = ProcessPool(self.n, self.stop, self._prepare)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.close()

    def share(self, data: Shared) -> Shared:
        """Move the tensors of `data` to shared memory if there are worker processes on this machine; return `data`.

        Raises UsageError if there is too little shared memory, as in a container by default.
        """
        if self._apart and self.engine == "local":
            try:
                data.share_memory()
            except RuntimeError as error:
                raise UsageError(
                    f"workers need shared memory: {error}. A container gets more by docker run --shm-size=1g; on the "
                    "CPU --workers 1 needs none"
                ) from error
        return data

    def run(
        self,
        function: TaskFunction,
        shared: Any,
        tasks: Iterable[Task],
        *,
        on_report: Callable[[Task, Any], None] = lambda task, report: None,
        on_start: Callable[[Task], None] = lambda task: None,
        on_lost: Callable[[Task, str], None] = lambda task, reason: None,
    ) -> Iterator[Outcome[Task, Any]]:
        """Yield the outcome of each task as it finishes: `done`, `failed` or `interrupted`.

        Args:
            function: called as function(shared, task, report, should_stop).
            tasks: taken one at a time when a worker is free, so a task may depend on earlier outcomes.
            on_report: called in this process with what a running task passes to `report`; may `cancel` the task.
            on_start: called in this process when a task is handed out for the first time.
            on_lost: called with the reason when a worker died and its task is to be retried.

        After a signal no further task starts, and running tasks end as `interrupted`.
        """
        job = Job(function, shared, on_report)
        if self._pool:
            yield from self._run_on(self._pool, job, iter(tasks), on_start, on_lost)
        else:
            yield from self._run_here(job, iter(tasks), on_start)

    def cancel(self, task: Any) -> None:
        """Stop this running task only; its outcome is `interrupted` unless it ended first."""
        self._cancelled.append(task)
        for worker in self._busy:
            if worker.task == task:
                worker.cancel()

    def _run_here(self, job: Job, tasks: Iterator[Any], on_start: Callable[[Any], None]) -> Iterator[Outcome[Any, Any]]:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()

        def should_stop() -> bool:
            return bool(self._cancelled) or self.stop.is_set()

        while not self.stop.is_set() and (task := next(tasks, None)) is not None:
            self._cancelled.clear()
            on_start(task)
            yield attempt(job.function, job.shared, task, functools.partial(job.on_report, task), should_stop)

    def _run_on(
        self,
        pool: Pool,
        job: Job,
        tasks: Iterator[Any],
        on_start: Callable[[Any], None],
        on_lost: Callable[[Any, str], None],
    ) -> Iterator[Outcome[Any, Any]]:
        lost: list[Any] = []  # to be retried
        lost_at_work: list[Any] = []
        there_are_more = True
        while True:
            for worker in pool.idle():
                if self.stop.is_set():
                    break
                if lost:
                    task = lost.pop()
                elif (task := next(tasks, None)) is not None:
                    on_start(task)
                else:
                    there_are_more = False
                    break
                worker.hand_out(job, task)
                self._busy.append(worker)
            if self.stop.is_set():
                pool.stop_tasks()
                yield from (Outcome(task, "interrupted", reason="its worker died") for task in lost)
                lost.clear()
            if not self._busy and (self.stop.is_set() or not (lost or there_are_more)):
                return
            for worker in pool.wait(self._busy):
                outcome = worker.receive(job)
                if worker.has_worked:
                    self._n_unused = 0
                if outcome is None:
                    continue
                self._busy.remove(worker)
                is_cancelled = outcome.task in self._cancelled
                if is_cancelled:
                    self._cancelled.remove(outcome.task)
                if outcome.status != "lost":
                    yield outcome
                    continue
                pool.remove(worker)
                if is_cancelled or self.stop.is_set():  # it was to end in any case
                    yield dataclasses.replace(outcome, status="interrupted")
                    continue
                self._check_deaths(worker, outcome.reason)
                if worker.is_at_work and outcome.task in lost_at_work:
                    yield dataclasses.replace(outcome, status="failed", reason=f"{outcome.reason}, twice")
                    continue
                if worker.is_at_work:  # else the task cannot be the cause
                    lost_at_work.append(outcome.task)
                on_lost(outcome.task, outcome.reason)
                lost.append(outcome.task)

    def _check_deaths(self, worker: Worker, reason: str) -> None:
        """Raise UsageError after `MOST_UNUSED` dead workers in a row that never began a task."""
        self._n_unused += not worker.has_worked
        if self._n_unused >= MOST_UNUSED:
            raise UsageError(
                f"{MOST_UNUSED} workers in a row ended before their first task: {reason}. Their own lines above say "
                "why; a program needs `if __name__ == '__main__':` in a file. On the CPU --workers 1 needs no other "
                "process"
            )


def available_cores() -> int:
    """Number of cores this process may use, within its CPU affinity and control-group limits."""
    import joblib

    return int(joblib.cpu_count())
