"""Run many independent tasks: in this process, on worker processes of this machine, or on a Ray cluster.

    with StopSignal() as stop, Workers(2, stop) as workers:
        for outcome in workers.run(square, shared, numbers, on_report=show):
            ...

A worker lives as long as the `with` block, imports torch once, and receives what the tasks of a `run` share once. If a
worker dies, only its task is lost. The task is retried once on another worker; engines must not retry on their own.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Engine, Job, Outcome, Pool, Task, TaskFunction, Worker, attempt


class Workers:
    """`n` processes that run tasks until the `with` block ends. One worker is this process itself, unless `apart`.

    Args:
        n: at most, on a cluster: as many as it has room for.
        apart: run tasks in other processes, even one at a time.
        prepare: whether those are prepared for training (`training.prepare_process`) or left as torch comes.
        engine: `local`, or `ray` for the actors of a Ray cluster.
        gpus_per_task: share of a GPU that an actor takes.
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
        job = Job(function, shared, on_report, on_start, retry_lost)
        if self._pool:
            yield from self._run_on(self._pool, job, iter(tasks))
        else:
            yield from self._run_here(job, iter(tasks))

    def _run_here(self, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()
        should_stop = self.stop.is_set
        while not should_stop() and (task := next(tasks, None)) is not None:
            job.on_start(task)
            yield attempt(job.function, job.shared, task, functools.partial(job.on_report, task), should_stop)

    def _run_on(self, pool: Pool, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        busy: list[Worker] = []
        lost: list[Any] = []
        there_are_more = True
        while True:
            for worker in pool.idle():
                if self.stop.is_set():
                    break
                again = bool(lost)
                if (task := lost.pop() if lost else next(tasks, None)) is None:
                    there_are_more = False
                    break
                job.on_start(task)
                worker.hand_out(job, task, again=again)
                busy.append(worker)
            if self.stop.is_set():
                pool.stop_tasks()
            if not busy and (self.stop.is_set() or not (lost or there_are_more)):
                return
            for worker in pool.wait(busy):
                if (outcome := worker.receive(job)) is None:
                    continue
                busy.remove(worker)
                if worker.task is not None:  # it died
                    pool.remove(worker)
                    if outcome.status == "lost" and job.retry_lost:
                        lost.append(outcome.task)
                yield outcome


def available_cores() -> int:
    """Cores that this process may use: affinity and the limits of control groups count."""
    import joblib

    return int(joblib.cpu_count())
